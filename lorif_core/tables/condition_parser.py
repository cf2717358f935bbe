"""Parses an SQL condition of a user into a tree of bounded size; `condition_translator` checks what it says."""

import logging
from collections.abc import Sequence
from reprlib import Repr
from typing import Any

from sqlglot import exp
from sqlglot.errors import ErrorLevel, ParseError, TokenError
from sqlglot.parser import Parser
from sqlglot.tokens import Tokenizer, TokenType

from lorif_core.errors import UserError

logging.getLogger("sqlglot").disabled = True  # it would log parts of a condition, which may be confidential

MAX_DEPTH = 16
MAX_OPERATORS = 400
_LEAVES = (exp.Literal, exp.Column, exp.Identifier, exp.Paren)
_short = Repr()
_short.maxstring = 60


def parse(condition: str) -> exp.Expr:
    """The tree of a condition.

    Raises:
        UserError: it is not one SQL expression, or it is too large.
    """
    try:
        tokens = Tokenizer().tokenize(condition)
        _check_tokens(tokens)
        trees = Parser(error_level=ErrorLevel.IMMEDIATE).parse_into(exp.Condition, tokens, condition)
    except TokenError:
        raise UserError("a quotation mark or a comment in it does not end") from None
    except ParseError as error:
        raise UserError(f"it is not complete, or not SQL, at {_position(error, condition)}") from None
    except RecursionError:
        raise too_deep() from None
    except UserError:
        raise
    except Exception:  # noqa: BLE001 - sqlglot raises IndexError, ValueError and others for texts that are not SQL
        raise UserError("it is not SQL") from None
    if len(trees) != 1 or trees[0] is None:
        raise UserError("it is empty, or not SQL")
    if sum(not isinstance(node, _LEAVES) for node in trees[0].walk()) > MAX_OPERATORS:
        raise UserError(f"it has more than {MAX_OPERATORS} operators")
    return trees[0]


def _check_tokens(tokens: Sequence[Any]) -> None:
    depth = deepest = 0
    for token in tokens:
        if token.comments or token.token_type in (TokenType.SEMICOLON, TokenType.HINT):
            raise UserError("it must be one condition, without ; and comments")
        depth += (token.token_type == TokenType.L_PAREN) - (token.token_type == TokenType.R_PAREN)
        deepest = max(deepest, depth)
    if deepest > MAX_DEPTH:
        raise too_deep()


def _position(error: ParseError, condition: str) -> str:
    details = error.errors[0] if error.errors else {}
    before = f"{details.get('start_context') or ''}{details.get('highlight') or ''}"
    return _short.repr(before or condition)


def shown(node: exp.Expr) -> str:
    """A part of a condition, for a message."""
    return _short.repr(node.sql(comments=False, unsupported_level=ErrorLevel.IGNORE))


def too_deep() -> UserError:
    """The refusal of a condition with too many levels."""
    return UserError(f"it is nested more than {MAX_DEPTH} levels deep")
