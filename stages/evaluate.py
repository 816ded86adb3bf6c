"""Stage evaluate: see `carseg.evaluate.evaluate`."""

from carseg.errors import run


def main() -> None:
    from carseg.params import load_params

    params = load_params()
    from carseg.evaluate import evaluate

    evaluate(params)


if __name__ == "__main__":
    run(main)
