"""Stage train_bce: see `carseg.train.train_bce`."""

from carseg.errors import run


def main() -> None:
    from carseg.params import load_params

    params = load_params()
    from carseg.train import train_bce

    train_bce(params)


if __name__ == "__main__":
    run(main)
