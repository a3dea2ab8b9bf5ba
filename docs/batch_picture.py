"""Draws the way of one batch through the rooms: ``python docs/batch_picture.py``."""

from pathlib import Path

ROOMS = ("Composer", "training/", "terms/", "telemetry/", "teachers/", "losses/")
# From room, to room, what is said; each is an arrow, or a note where both are the same
STEPS = (
    ("Composer", "training/", "the student is called: the batch as it sees it"),
    ("Composer", "Composer", "forward of the student"),
    ("Composer", "training/", "BEFORE_LOSS: its answer as it gave it"),
    ("Composer", "Composer", "the student's own loss"),
    ("Composer", "training/", "AFTER_LOSS"),
    ("training/", "terms/", "measure each term whose weight is above 0"),
    ("terms/", "terms/", "read: logits, mask, labels, class axis = Microbatch"),
    ("terms/", "teachers/", "the teachers that this batch draws: target?"),
    ("teachers/", "terms/", "logits, no graph, no trace"),
    ("terms/", "telemetry/", "each answer, before they are combined"),
    ("terms/", "losses/", "student, target, kept positions"),
    ("losses/", "terms/", "a scalar, its gradient in chunks"),
    ("terms/", "telemetry/", "KL, entropies, agreement"),
    ("terms/", "training/", "Measured: loss, values, positions"),
    ("training/", "Composer", "org_loss_weight · loss + Σ weight · term"),
    ("Composer", "Composer", "backward: the term's gradient tells its share"),
    ("Composer", "training/", "AFTER_TRAIN_BATCH: stop on NaN"),
    ("Composer", "Composer", "the optimizer's step"),
    ("Composer", "training/", "BATCH_END: reduce over ranks, log"),
)
LANE, ROW, TOP, LEFT = 170, 34, 64, 86
WIDTH = LEFT * 2 + LANE * (len(ROOMS) - 1)


def draw() -> str:
    """Return the picture as SVG that needs no script, no font and no network."""
    height = TOP + ROW * (len(STEPS) + 1)
    lanes = {room: LEFT + LANE * index for index, room in enumerate(ROOMS)}
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" '
        'aria-label="The way of one batch through the rooms" font-family="sans-serif" '
        'font-size="13">',
        '<marker id="tip" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="8" markerHeight="8" '
        'orient="auto"><path d="M0 0L8 4L0 8z" fill="#2f6f9f"/></marker>',
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
    ]
    for room, x in lanes.items():
        lines.append(
            f'<rect x="{x - 58}" y="14" width="116" height="28" rx="5" fill="#e8eef4"/>'
            f'<text x="{x}" y="33" text-anchor="middle" font-weight="bold">{room}</text>'
            f'<path d="M{x} 42V{height - 14}" stroke="#c5ced6" fill="none"/>'
        )
    for index, (here, there, words) in enumerate(STEPS):
        lines.append(_step(lanes[here], lanes[there], TOP + ROW * (index + 1) - 12, words))
    return "\n".join([*lines, "</svg>"]) + "\n"


def _step(start: int, end: int, y: int, words: str) -> str:
    if start == end:
        dot = f'<circle cx="{start}" cy="{y}" r="4" fill="#2f6f9f"/>'
        return dot + _text(start + 10, y + 4, words)
    arrow = f'<path d="M{start} {y}H{end}" stroke="#2f6f9f" fill="none" marker-end="url(#tip)"/>'
    return arrow + _text(min(start, end) + 8, y - 7, words)


def _text(x: int, y: int, words: str) -> str:
    halo = 'stroke="#ffffff" stroke-width="4" paint-order="stroke"'
    return f'<text x="{x}" y="{y}" fill="#333333" {halo}>{words}</text>'


if __name__ == "__main__":
    Path(__file__).with_name("images").joinpath("batch.svg").write_text(draw(), encoding="utf-8")
