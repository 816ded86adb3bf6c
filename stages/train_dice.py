"""Stage train_dice: see `carseg.train.train_dice`."""

from carseg.errors import run


def main() -> None:
    from carseg.params import load_params

    params = load_params()
    from carseg.train import train_dice

    train_dice(params)


if __name__ == "__main__":
    run(main)
