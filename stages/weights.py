"""Stage weights: see `carseg.official.provide`."""

from pathlib import Path

from carseg.errors import hold_interrupts, run


def main() -> None:
    with hold_interrupts():
        from carseg.params import load_params
        from carseg.recorded import Recorded

    recorded = Recorded("weights")
    with hold_interrupts():
        from carseg.official import provide

    provide(load_params(), Path("Weights"), Path("pretrained"))
    recorded.check()


if __name__ == "__main__":
    run(main)
