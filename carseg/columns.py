"""Names of what is scored, as columns of `plots/scores.csv` have them."""

NETS = ("untrained", "bce", "dice")
VIEWS = ("plain", "upright", "closer", "d4", "d4_closer")
LAID = ("plain", "upright", "closer")  # views that are also taken of the photo turned
QUARTERS = range(4)  # right angles that a photo is turned by


def laid(view: str, quarters: int) -> str:
    """Name a view of the photo turned by so many right angles: plain, turn90, closer_turn180."""
    if quarters == 0:
        return view
    return f"{'' if view == 'plain' else view + '_'}turn{90 * quarters}"


TURNS = tuple(laid(view, quarters) for view in LAID for quarters in QUARTERS if quarters)
