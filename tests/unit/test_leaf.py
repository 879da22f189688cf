"""The command `leaf` lists every command and finds each."""

from click.testing import CliRunner

from stages.leaf import COMMANDS, main


def test_every_command_that_is_listed_explains_itself() -> None:
    runner = CliRunner()
    listed = runner.invoke(main, ["--help"]).output
    for name in (name for commands in COMMANDS.values() for name in commands):
        assert f"\n  {name} " in listed
        explained = runner.invoke(main, [name, "--help"])
        assert explained.exit_code == 0 and "Usage: main " + name in explained.output


def test_what_is_no_command_is_refused() -> None:
    assert "No such command 'corpse'" in CliRunner().invoke(main, ["corpse"]).output
