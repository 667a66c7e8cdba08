from emanet.errors import short, some, suggest


def test_suggest_names_the_nearest_or_all():
    assert suggest("stepz", ["steps", "seed"]) == "; did you mean 'steps'?"
    assert suggest("zzz", ["b", "a"]) == "; there are: a, b"
    assert suggest("zzz", []) == ""


def test_some_counts_what_it_leaves_out():
    assert some([1, 2]) == "1, 2" and some(range(7), 3) == "0, 1, 2 and 4 more"


def test_short_is_one_line_whatever_the_value():
    assert short("a") == "'a'" and short((2, 4)) == "(2, 4)"
    for value in ("x" * 10_000, 10**400, 10**5000, [[[[[[[[0]]]]]]]], {"a": 10**5000}):
        assert len(short(value)) < 300
