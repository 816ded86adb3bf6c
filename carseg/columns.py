"""Names of what is trained and scored, as columns of `plots/scores.csv` have them."""

TRAINED = {"bce": "u2net_segmentation.pth", "dice": "u2net_segmentation_dice_loss.pth"}
TASKS = tuple(TRAINED)
NETS = ("untrained", *TASKS)
VIEWS = ("plain", "upright", "closer", "d4", "d4_closer")
LAID = ("plain", "upright", "closer")  # views that are also taken of the photo turned
QUARTERS = range(4)  # right angles that a photo is turned by


def view_name(view: str, quarters: int) -> str:
    """Name a view of the photo turned by so many right angles: plain, turn90, closer_turn180."""
    if quarters == 0:
        return view
    return f"{'' if view == 'plain' else view + '_'}turn{90 * quarters}"


TURNS = tuple(view_name(view, quarters) for view in LAID for quarters in QUARTERS if quarters)
