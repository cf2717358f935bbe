"""Small tokenizers of the kinds that language models have, made of the classes of transformers and a few lines."""

import json
from collections.abc import Callable
from functools import cache
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    BertTokenizer,
    GemmaTokenizer,
    GPT2Tokenizer,
    LlamaTokenizer,
    PreTrainedTokenizerFast,
    Qwen2Tokenizer,
    RobertaTokenizer,
    T5Tokenizer,
)

LINES = (
    "the cat sat on the mat, and the dog sat too", "Hello world! I'd say it's 12 o'clock.", "if x:\n    return",
    "naïve café, ﬁnal — “quoted”", "日本語 e\u0301tude 🙂", "a  b   c\t\td\n\ne",
    "QUESTION: ANSWER: yes no",
)  # fmt: skip
_SPACE = "▁"
_SPECIAL = ("<unk>", "<s>", "</s>", "<pad>")

Kind = Callable[[], Any]


def gpt2() -> Any:
    """Byte-level BPE without special tokens."""
    return GPT2Tokenizer(**_byte_level(), bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def gpt2_appends_eos() -> Any:
    """Byte-level BPE, EOS at the end."""
    return _with_template(gpt2(), "$A", "</s>")


def llama3() -> Any:
    """Byte-level BPE, BOS in front, and offsets that leave out spaces."""
    tokenizer = gpt2()
    template = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    backend = tokenizer.backend_tokenizer
    backend.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=True), template])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")


def roberta() -> Any:
    """Byte-level BPE that puts a space before each text, BOS and EOS around it; offsets leave out spaces."""
    return RobertaTokenizer(**_byte_level(), add_prefix_space=True)


def words_with_spaces_behind() -> Any:
    """Byte-level BPE whose words end with their space, which the offsets leave out."""
    backend = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(r"\S+\s?|\s+"), "isolated")
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    _train(backend, trainers.BpeTrainer, 500, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.ByteLevel(trim_offsets=True)
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")


def qwen2() -> Any:
    """Byte-level BPE of the NFC of a text."""
    return Qwen2Tokenizer(**_byte_level())


def llama2() -> Any:
    """BPE with byte fallback; the pre-tokenizer puts a space before a text (`legacy=False`), BOS in front."""
    return _with_template(LlamaTokenizer(**_byte_fallback(), legacy=False), "<s>", "$A")


def llama2_legacy() -> Any:
    """BPE with byte fallback; the normaliser puts a space before a text, as in `tokenizer.json` of Llama 2."""
    tokenizer = llama2()
    backend = tokenizer.backend_tokenizer
    backend.pre_tokenizer = None
    backend.normalizer = normalizers.Sequence([normalizers.Prepend(_SPACE), normalizers.Replace(" ", _SPACE)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")


def gemma() -> Any:
    """BPE with byte fallback, no space before a text, BOS in front."""
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    return _with_template(GemmaTokenizer(**_byte_fallback(), **names), "<s>", "$A")


def bert() -> Any:
    """WordPiece of lower-case text without accents, special tokens around it; white space is lost."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    pieces = sorted({character for line in LINES for character in line.lower()} - {" ", "\n", "\t"})
    words = ["cat", "##s", "hello", "etude", "cafe", "##e"]
    vocab = dict.fromkeys([*special, *pieces, *(f"##{piece}" for piece in pieces), *words])
    return BertTokenizer(vocab={token: i for i, token in enumerate(vocab)})


def t5() -> Any:
    """Unigram of words, EOS at the end; white space is lost."""
    return T5Tokenizer(vocab=_unigram(), extra_ids=0)


def t5_nfkc() -> Any:
    """Unigram of the NFKC of a stripped text, with runs of spaces joined; EOS at the end."""
    tokenizer = t5()
    tokenizer.backend_tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")]
    )
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(_SPACE, prepend_scheme="always")
    return tokenizer


LOSSLESS: tuple[Kind, ...] = (
    gpt2, gpt2_appends_eos, llama3, roberta, words_with_spaces_behind, llama2, llama2_legacy, gemma,
)  # fmt: skip
NORMALISING: tuple[Kind, ...] = (qwen2, bert, t5, t5_nfkc)
ALL = LOSSLESS + NORMALISING


@cache
def made(kind: Kind) -> Any:
    """The tokenizer of a kind, made once; tests must not change it."""
    return kind()


def text_bytes(tokenizer: Any, ids: list[int]) -> list[bytes]:
    """The bytes that each token of a lossless tokenizer stands for; special tokens give none."""
    alphabet = {character: byte for byte, character in enumerate(_alphabet())}
    is_byte_level = isinstance(tokenizer.backend_tokenizer.decoder, decoders.ByteLevel)
    pieces = []
    for token in tokenizer.convert_ids_to_tokens(ids):
        if token in _SPECIAL:
            pieces.append(b"")
        elif is_byte_level:
            pieces.append(bytes(alphabet[character] for character in token))
        elif token.startswith("<0x"):
            pieces.append(bytes([int(token[3:5], 16)]))
        else:
            pieces.append(token.replace(_SPACE, " ").encode())
    return pieces


def _alphabet() -> list[str]:
    """The character that byte-level tokenizers write for each byte."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]


@cache
def _byte_level() -> dict[str, Any]:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return _train(backend, trainers.BpeTrainer, 420, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())


@cache
def _byte_fallback() -> dict[str, Any]:
    """Merges of three lines, and a token for every byte."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Metaspace(_SPACE)
    trained = _train(backend, trainers.BpeTrainer, 200, lines=LINES[:3])
    tokens = dict.fromkeys([*trained["vocab"], *(f"<0x{byte:02X}>" for byte in range(256))])
    return {"vocab": {token: i for i, token in enumerate(tokens)}, "merges": trained["merges"]}


@cache
def _unigram() -> list[tuple[str, float]]:
    backend = Tokenizer(models.Unigram())
    backend.pre_tokenizer = pre_tokenizers.Metaspace(_SPACE)
    trained = _train(backend, trainers.UnigramTrainer, 200, unk_token="<unk>")
    pieces = [(token, score) for token, score in trained["vocab"] if token not in _SPECIAL]
    return [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *pieces]


def _train(
    backend: Tokenizer, trainer: Any, size: int, lines: tuple[str, ...] = LINES, **options: Any
) -> dict[str, Any]:
    """Train in place; returns vocabulary and merges."""
    options = {"vocab_size": size, "special_tokens": list(_SPECIAL), "show_progress": False, **options}
    backend.train_from_iterator(lines, trainer(**options))
    model = json.loads(backend.to_str())["model"]
    return {"vocab": model["vocab"], "merges": [tuple(merge) for merge in model.get("merges", ())]}


def _with_template(tokenizer: Any, *template: str) -> Any:
    special = [(token, tokenizer.convert_tokens_to_ids(token)) for token in template if token != "$A"]
    backend = tokenizer.backend_tokenizer
    backend.post_processor = processors.TemplateProcessing(list(template), special_tokens=special)
    return tokenizer
