from emanet.show.terminal import bar, note, say, track


def test_results_go_to_stdout_and_notes_to_stderr_as_they_are(capsys):
    say("[bold]a", "b" * 200)
    note("skipped: [red]x.png")
    assert capsys.readouterr() == ("[bold]a\n" + "b" * 200 + "\n", "skipped: [red]x.png\n")


def test_off_a_terminal_there_is_no_bar(capsys):
    assert list(track([1, 2], "work")) == [1, 2] and list(track(iter("ab"), "work", 2)) == ["a", "b"]
    with bar("work") as advance:
        advance(1, 5)
    assert capsys.readouterr() == ("", "")
