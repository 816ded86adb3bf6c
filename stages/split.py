"""Stage split: see `carseg.split.split`."""

from carseg.errors import hold_interrupts, run


def main() -> None:
    with hold_interrupts():
        from carseg.params import load_params
        from carseg.recorded import Recorded

    recorded = Recorded("split")
    params = load_params()  # a fault in it is told before the rest takes seconds to import
    with hold_interrupts():
        from carseg.split import split

    split(params)
    recorded.check()


if __name__ == "__main__":
    run(main)
