"""The one exception that means "the user must change something": one sentence, exit code 2."""


class UserError(ValueError):
    """Bad input. The message names the file, key or flag, what was found and how to fix it."""


def nearest(name: str, known: list[str]) -> str:
    """A hint for a misspelt name: the closest known one, and all of them."""
    import difflib

    close = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    hint = f"did you mean '{close[0]}'? " if close else ""
    return f"{hint}known: {', '.join(sorted(known)) or 'none'}"
