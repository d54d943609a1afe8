"""What pocket's language model is taught to read: captions under several system instructions, and their answers.

As in HunyuanVideo, the instruction stands before the prompt in Llama 3's chat format and colours how the prompt is
read. Every answer can be given from the caption's words alone; what the caption leaves unsaid is "unknown".
"""
from __future__ import annotations

import random
import re
from dataclasses import dataclass

from diffusers.pipelines.hunyuan_video.pipeline_hunyuan_video import DEFAULT_PROMPT_TEMPLATE

from t2v_kit.toyland import Scene, caption, random_scene

ATTRIBUTES = ("subject", "colour", "companion", "companion_colour", "place", "sky", "direction", "speed")
SAYABLE = ("colour", "place", "sky", "direction", "speed")  #: what a caption may leave unsaid


def template(instruction: str) -> str:
    """The prompt template of a system instruction, with {} for the prompt, as the pipeline's default is written."""
    return (f"<|start_header_id|>system<|end_header_id|>\n\n{instruction}<|eot_id|>"
            "<|start_header_id|>user<|end_header_id|>\n\n{}<|eot_id|>")


#: by lesson; "describe" is the template that HunyuanVideoPipeline uses when none is given
TEMPLATES = {
    "describe": DEFAULT_PROMPT_TEMPLATE["template"],
    "who": template("Name every subject of the video and its colour."),
    "where": template("Say where the video takes place and under what sky."),
    "motion": template("Say which way the subject moves and how fast."),
    "retell": template("Say the same in other words."),
}
ANSWER_HEAD = "<|start_header_id|>assistant<|end_header_id|>\n\n"
END = "<|eot_id|>"

KEYWORDS = {  # what names a subject in a caption; the order of mention is read off these
    "motorcycle": "motorcycle|motorbike|biker", "car": "car|automobile", "bus": "bus", "dog": "dog|puppy",
    "cat": "cat|kitten", "bird": "bird|songbird", "balloon": "balloon", "plane": "plane|airplane|aeroplane",
    "ball": "ball", "robot": "robot",
}


@dataclass(frozen=True)
class Lesson:
    """One example. `facts` is what the caption says: actors in order of mention, None where it is silent."""

    name: str
    caption: str
    answer: str
    facts: dict

    @property
    def prompt(self) -> str:
        return TEMPLATES[self.name].format(self.caption)


def read_facts(scene: Scene, text: str, omit: tuple[str, ...]) -> dict:
    """What `text`, a caption of `scene`, says. Which of two subjects is the main one it cannot say, so they are
    'subject' and 'companion' in the order of mention."""
    def mention(actor):
        return re.search(rf"\b({KEYWORDS[actor[0]]})\b", text.lower()).start()

    actors = sorted(scene.actors, key=mention)
    facts = {field: getattr(scene, field) for field in ("place", "sky", "direction", "speed")}
    facts["subject"], facts["colour"] = actors[0]
    facts["companion"], facts["companion_colour"] = actors[1] if len(actors) > 1 else ("none", "none")
    unsaid = set(omit) | ({"companion_colour"} if "colour" in omit and len(actors) > 1 else set())
    return {field: None if field in unsaid else value for field, value in facts.items()}


def answer(name: str, facts: dict) -> str:
    """The answer to a lesson's instruction, in fixed words (all but "retell", which is told by a new caption)."""
    said = {field: value or "unknown" for field, value in facts.items()}
    if name == "who":
        names = [(said["colour"], said["subject"]), (said["companion_colour"], said["companion"])]
        return " and ".join(f"{colour} {subject}" for colour, subject in names if subject != "none")
    if name == "where":
        return "place: {place}. sky: {sky}.".format(**said)
    if name == "motion":
        return "direction: {direction}. speed: {speed}.".format(**said)
    return ("subject: {colour} {subject}. companion: {companion_colour} {companion}. place: {place}. sky: {sky}. "
            "direction: {direction}. speed: {speed}.").format(**said).replace("none none", "none")


def roughen(text: str, rng: random.Random) -> str:
    """A caption as people type: in small letters without a full stop, or with a word that nobody knows in it."""
    if rng.random() < 0.5:
        return text.lower().rstrip(".")
    words = text.split(" ")
    stranger = "".join(rng.choices("etaoinshrdlcumwfgypbvk", k=rng.randint(2, 9)))
    words.insert(rng.randrange(1, len(words) + 1), stranger)
    return " ".join(words)


def write(scene: Scene, rng: random.Random, silent: float = 0.25, rough: float = 0.2) -> tuple[str, dict]:
    """A caption as someone might write it, and what it says. `silent` is the share of captions that leave one or
    more attributes unsaid, `rough` that of carelessly written ones."""
    omit = tuple(rng.sample(SAYABLE, rng.randint(1, len(SAYABLE)))) if rng.random() < silent else ()
    text = caption(scene, rng.getrandbits(31), omit)
    facts = read_facts(scene, text, omit)
    return (roughen(text, rng) if rng.random() < rough else text), facts


def draw_lesson(rng: random.Random, name: str | None = None, unseen: bool = False, silent: float = 0.25,
                rough: float = 0.2, pair: float = 0.4) -> Lesson:
    """A random lesson; `pair` is the share of captions with two subjects. `unseen` takes only scenes that training
    never sees, otherwise only the others; for `silent` and `rough` see `write`."""
    name = name or rng.choice(list(TEMPLATES))
    scene = random_scene(rng, pair=pair, unseen=unseen)
    text, facts = write(scene, rng, silent, rough)
    if name == "retell":
        unsaid = tuple(field for field in SAYABLE if facts[field] is None)
        return Lesson(name, text, caption(scene, rng.getrandbits(31), unsaid), facts)
    return Lesson(name, text, answer(name, facts), facts)
