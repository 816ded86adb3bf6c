"""Stage renderings: see `carseg.renderings.provide`."""

from pathlib import Path

from carseg.errors import hold_interrupts, run


def main() -> None:
    with hold_interrupts():
        from carseg.params import load_params
        from carseg.recorded import Recorded

    recorded = Recorded("renderings")
    with hold_interrupts():
        from carseg.renderings import provide

    provide(load_params().renderings, Path("renderings"))
    recorded.check()


if __name__ == "__main__":
    run(main)
