"""Names that a system hands on as bytes: of files, and whatever else stands on a command line."""


def check_utf8(what: str, name: str):
    """Raises a `ValueError` for a name with bytes that are not UTF-8, which Python reads as halves of surrogates."""
    if any("\udc80" <= character <= "\udcff" for character in name):
        raise ValueError(f"{what} must be UTF-8, got {ascii(name)}.")


__all__ = ["check_utf8"]
