from adapters import errors
from adapters.errors import AdapterError


def _tree(root: type[AdapterError]) -> list[type[AdapterError]]:
    return [root, *(error for child in root.__subclasses__() for error in _tree(child))]


def test_every_refusal_has_a_code_of_its_own() -> None:
    codes = [error.code for error in _tree(AdapterError)]
    assert len(codes) == len(set(codes))
    assert all(code == code.lower() and code.isidentifier() for code in codes)


def test_every_error_says_in_its_docstring_what_it_means() -> None:
    assert [error.__name__ for error in _tree(AdapterError) if not error.__doc__] == []


def test_an_error_carries_what_a_program_needs() -> None:
    error = errors.RankTooLarge("too much", param="r", details={"rank": 64})
    assert (error.code, error.message, error.param, error.details) == ("rank_too_large", "too much", "r", {"rank": 64})
    assert str(error) == "too much"
