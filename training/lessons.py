"""What pocket's language model is taught to read: captions under several system instructions, and their answers.

As in HunyuanVideo, the instruction stands before the prompt in Llama 3's chat format and colours how the prompt is
read. Every answer can be given from the caption's words alone; what the caption leaves unsaid is "unknown".
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass

from diffusers.pipelines.hunyuan_video.pipeline_hunyuan_video import DEFAULT_PROMPT_TEMPLATE

from t2v_kit.toyland import Scene, random_scene
from t2v_kit.toyland.captions import Telling, draw_omit, tell
from t2v_kit.toyland.lexicon import NOUNS

ATTRIBUTES = ("subject", "colour", "companion", "companion_colour", "place", "sky", "direction", "speed")


def template(instruction: str) -> str:
    """The prompt template of a system instruction, with {} for the prompt, as the pipeline's default is written."""
    return (
        f"<|start_header_id|>system<|end_header_id|>\n\n{instruction}<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\n{}<|eot_id|>"
    )


#: by lesson; "describe" is the template that HunyuanVideoPipeline uses when none is given
TEMPLATES = {
    "describe": DEFAULT_PROMPT_TEMPLATE["template"],
    "who": template("Name every subject of the video and its colour."),
    "where": template("Say where the video takes place and under what sky."),
    "motion": template("Say which way the subject moves and how fast."),
    "retell": template("Say the same in other words."),
    "plain": template("Repeat it plainly."),
    "correct": template("Write it again without mistakes."),
}
SHARES = {"describe": 8, "who": 2, "where": 1, "motion": 1, "retell": 1, "plain": 3, "correct": 2}  #: of the lessons
ANSWER_HEAD = "<|start_header_id|>assistant<|end_header_id|>\n\n"
END = "<|eot_id|>"

#: what names a subject in a caption, the longer names first
KEYWORDS = {subject: "|".join(sorted(map(re.escape, nouns), key=len, reverse=True)) for subject, nouns in NOUNS.items()}
#: words that people type and Toyland lacks
STRANGERS = tuple(
    re.findall(
        r"\w+",
        """
    black brown pink orange grey gray silver bronze turquoise beige elephant lion tiger spaceship rocket train tree
    house castle dragon unicorn princess dinosaur fish shark whale flower butterfly bee cow pig sheep chicken rabbit
    bear monkey fox wolf helicopter tractor bicycle tank submarine ambulance rollercoaster laptop guitar piano pizza
    coffee apple banana cake forest desert space moonbase kitchen office river waterfall island volcano jungle
    underwater castle bridge station fog clouds dancing eating sleeping singing cooking fighting swimming talking
    laughing crying jumping reading explosion fire smoke magic el la un une der die das rojo rouge rot auto chat hund
    playa strand straße noche avec und con in 3 42 2024 omg lol wow
""",
    )
)


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


def read_facts(scene: Scene, said: Telling) -> dict:
    """What a caption of `scene` says. Which of two subjects is the main one it cannot say, so they are 'subject' and
    'companion' in the order of mention."""
    facts = {
        field: None if field in said.unsaid else getattr(scene, field)
        for field in ("place", "sky", "direction", "speed")
    }
    silent = (
        set(said.actors)
        if "colour" in said.unsaid
        else {scene.companion} & {actor for actor in said.actors if "companion_colour" in said.unsaid}
    )
    actors = [(subject, None if (subject, colour) in silent else colour) for subject, colour in said.actors]
    facts["subject"], facts["colour"] = actors[0]
    facts["companion"], facts["companion_colour"] = actors[1] if len(actors) > 1 else ("none", "none")
    return facts


def answer(name: str, facts: dict) -> str:
    """The answer to a lesson's instruction, in fixed words ("retell" and "correct" are told by captions)."""
    said = {field: value or "unknown" for field, value in facts.items()}
    names = [(said["colour"], said["subject"]), (said["companion_colour"], said["companion"])]
    who = " and ".join(f"{colour} {subject}" for colour, subject in names if subject != "none")
    if name == "who":
        return who
    if name == "where":
        return "place: {place}. sky: {sky}.".format(**said)
    if name == "motion":
        return "direction: {direction}. speed: {speed}.".format(**said)
    if name == "plain":
        parts = [who.replace("unknown ", ""), *(facts[field] for field in ("direction", "speed", "place", "sky"))]
        return ", ".join(part for part in parts if part) + "."
    return (
        (
            "subject: {colour} {subject}. companion: {companion_colour} {companion}. place: {place}. sky: {sky}. "
            "direction: {direction}. speed: {speed}."
        )
        .format(**said)
        .replace("none none", "none")
    )


def roughen(text: str, rng: random.Random) -> str:
    """A caption with a word or two that Toyland does not know: one that exists, or letters in a row."""
    words = text.split(" ")
    for _ in range(rng.choice((1, 1, 2))):
        stranger = (
            rng.choice(STRANGERS)
            if rng.random() < 0.6
            else "".join(rng.choices("etaoinshrdlcumwfgypbvk", k=rng.randint(2, 9)))
        )
        stranger = stranger.upper() if text.isupper() else stranger.capitalize() if text.istitle() else stranger
        words.insert(rng.randrange(len(words) + 1), stranger)
    return " ".join(words)


def write(
    scene: Scene, rng: random.Random, silent: float = 0.35, rough: float = 0.1, careless: bool = True
) -> tuple[str, dict, Telling]:
    """A caption as someone might write it, what it says, and how it was told. `silent` is the share of captions that
    leave one or more attributes unsaid, `rough` that with unknown words."""
    said = tell(scene, rng, draw_omit(rng, silent), careless)
    text = said.text.strip("\n") or said.plain
    return (roughen(text, rng) if rng.random() < rough else text), read_facts(scene, said), said


def draw_lesson(
    rng: random.Random,
    name: str | None = None,
    unseen: bool = False,
    silent: float = 0.35,
    rough: float = 0.1,
    pair: float = 0.4,
    careless: bool = True,
) -> Lesson:
    """A random lesson; `pair` is the share of captions with two subjects. `unseen` takes only scenes that training
    never sees, otherwise only the others; for `silent`, `rough` and `careless` see `write`."""
    name = name or rng.choices(list(SHARES), SHARES.values())[0]
    scene = random_scene(rng, pair=pair, unseen=unseen)
    text, facts, said = write(scene, rng, silent, rough if name != "correct" else 0, careless)
    if name == "retell":
        return Lesson(name, text, tell(scene, rng, tuple(said.unsaid), careless=False).plain, facts)
    return Lesson(name, text, said.plain if name == "correct" else answer(name, facts), facts)
