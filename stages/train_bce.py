"""Stage train_bce: see `carseg.train.train_bce`."""

from carseg.errors import hold_interrupts, run


def main() -> None:
    with hold_interrupts():
        from carseg.params import load_params
        from carseg.recorded import Recorded

    recorded = Recorded("train_bce")
    params = load_params()  # a fault in it is told before the rest takes seconds to import
    with hold_interrupts():
        from carseg.train import train_bce

    train_bce(params, recorded)


if __name__ == "__main__":
    run(main)
