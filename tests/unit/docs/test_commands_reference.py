"""The reference of the command line has every command, argument and exit code, with its meaning."""

from docs_generators.commands_reference import EXIT_CODES, arguments_of, commands_page
from flows.argument_parser import subcommands
from flows.interrupts import SIGINT_EXIT_CODE, SIGTERM_EXIT_CODE
from flows.parser import command_parser
from lorif_core.errors import LorifError


def test_every_command_and_argument_is_on_the_page_with_its_help() -> None:
    page = commands_page()
    for name, parser in subcommands(command_parser()).items():
        section = page.partition(f"## lorif {name} {{#{name}}}")[2].partition("\n## ")[0]
        assert parser.description
        for argument in arguments_of(parser):
            assert argument.help, f"{argument.dest} of lorif {name} has no help"
            for spelling in argument.option_strings or argument.choices or [argument.metavar or argument.dest]:
                assert spelling in section


def test_every_exit_code_of_an_error_is_explained() -> None:
    classes = [LorifError]
    for kind in classes:
        classes += kind.__subclasses__()
    assert {kind.exit_code for kind in classes} | {0, SIGINT_EXIT_CODE, SIGTERM_EXIT_CODE} == set(EXIT_CODES)
