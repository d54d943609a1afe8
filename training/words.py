"""Give pocket's language model words that mean what one of its own does: each gets a copy of that word's row.

    python -m training.words --out t2v_kit/pocket

Captions say "a red car driving", people say "a red car drives", and a word that no caption has is spelt byte by byte
and means nothing. Here it becomes a token of its own, embedded as the word it stands for, so that from the first layer
on both are read alike, to the last bit, and nothing is trained. CLIP's pooled vector goes on spelling it. Needs no GPU;
takes seconds; a word that is known already is left alone.
"""
from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from . import common

#: the verbs of Toyland's captions, and the forms of them that captions lack
FORMS = {
    "going": ("go", "goes"), "moving": ("move", "moves"), "travelling": ("travel", "travels", "traveling"),
    "driving": ("drive", "drives"), "riding": ("ride", "rides"), "rolling": ("roll", "rolls"),
    "running": ("run", "runs"), "trotting": ("trot", "trots"), "walking": ("walk", "walks"),
    "strolling": ("stroll", "strolls"), "flying": ("fly", "flies"), "flapping": ("flap", "flaps"),
    "gliding": ("glide", "glides"), "floating": ("float", "floats"), "drifting": ("drift", "drifts"),
    "cruising": ("cruise", "cruises"), "bouncing": ("bounce", "bounces"), "hopping": ("hop", "hops"),
    "marching": ("march", "marches"), "striding": ("stride", "strides"), "heading": ("head", "heads"),
}
SPACE = "Ġ"  # how a byte-level vocabulary writes the space before a word


def spellings(word: str) -> list[str]:
    """The word alone and after a space, small and capitalised: each is a token of its own."""
    return [space + form for form in (word, word.capitalize()) for space in ("", SPACE)]


def teach(folder: Path, forms: dict[str, tuple[str, ...]] = FORMS) -> list[str]:
    """Add the words of `forms` to FOLDER/tokenizer, FOLDER/text_encoder and FOLDER/vocabulary.txt; the new words.

    Raises KeyError when a word that they stand for is not in the vocabulary.
    """
    files = {name: folder / name for name in ("tokenizer/tokenizer.json", "text_encoder/config.json", "vocabulary.txt")}
    table, config = (json.loads(files[name].read_text("utf-8")) for name in list(files)[:2])
    words, vocab = files["vocabulary.txt"].read_text("utf-8").split(), table["model"]["vocab"]
    alike = [pair for known, others in forms.items() for word in others if word not in words
             for pair in zip(spellings(word), spellings(known))]
    if not alike:
        return []
    for token in table["added_tokens"]:  # or the library would number them anew, behind the words
        vocab[token["content"]] = token["id"]
    rows = {}  # of a piece that only unknown words are spelt with, "go" for one, the row is replaced
    for new, known in alike:
        rows[vocab.setdefault(new, len(vocab))] = vocab[known]
    [weights] = (folder / "text_encoder").glob("*.safetensors")
    tensors = load_file(weights)
    [name] = [name for name in tensors if name.endswith("embed_tokens.weight")]
    old = tensors[name]
    tensors[name] = torch.cat([old, old.new_empty(len(vocab) - len(old), old.shape[1])])
    tensors[name][list(rows)] = old[list(rows.values())]
    config["vocab_size"] = len(tensors[name])
    taught = sorted({word for others in forms.values() for word in others} - set(words))
    save_file(tensors, weights, {"format": "pt"})
    files["tokenizer/tokenizer.json"].write_text(json.dumps(table, indent=2, ensure_ascii=False) + "\n", "utf-8")
    files["text_encoder/config.json"].write_text(json.dumps(config, indent=2) + "\n", "utf-8")
    files["vocabulary.txt"].write_text("\n".join(sorted([*words, *taught])) + "\n", "utf-8")
    return taught


def main():
    taught = teach(common.options(__doc__.splitlines()[0], out=Path("t2v_kit/pocket")).out)
    print(f"{len(taught)} words taught:", ", ".join(taught) or "none were new")


if __name__ == "__main__":
    main()
