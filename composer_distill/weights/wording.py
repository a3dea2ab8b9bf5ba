"""Text that a file chose, fit for a terminal, a log and an error."""


def plain(value: object, longest: int = 200) -> str:
    """A value of a file in one short line, without what could steer a terminal.

    Only text, numbers and truth values speak for themselves. Anything else is named by its kind,
    so that no method of what a file made is called.

    Args:
        value: What the file holds.
        longest: How many letters are shown of it.

    Example:
        >>> plain("weight" + chr(27) + "[2J"), plain(0.5), plain([1, 2])
        ('weight?[2J', '0.5', 'a list')
    """
    if value is None or type(value) in (bool, float) or _is_short_integer(value):
        return str(value)
    if type(value) is not str:
        return f"a {type(value).__name__}"
    cut = value[: longest - 3] + "..." if len(value) > longest else value
    return "".join(letter if letter.isprintable() else "?" for letter in cut)


def _is_short_integer(value: object) -> bool:
    return type(value) is int and value.bit_length() <= 256
