"""The words that Toyland's captions are made of, by what they mean: tables only, which `captions` reads.

No word stands for two things that a scene can have. What is listed as a filler means nothing here.
"""

from __future__ import annotations


def split(text: str) -> tuple[str, ...]:
    """Phrases that are separated by commas or lines."""
    return tuple(part.strip() for part in text.replace("\n", ",").split(",") if part.strip())


# ---- who -------------------------------------------------------------------------------------------------

#: what names a subject; the first is its plain name
NOUNS = {
    "motorcycle": split("motorcycle, motorbike, bike, motor bike, chopper, scooter, moped, cruiser bike"),
    "car": split(
        "car, automobile, sedan, sports car, coupe, hatchback, convertible, family car, roadster, auto, "
        "little car, old-timer, limousine"
    ),
    "bus": split("bus, coach, city bus, tour bus, minibus, school bus, passenger bus, omnibus, tourist coach"),
    "dog": split(
        "dog, puppy, hound, pup, doggy, pooch, doggo, terrier, labrador, retriever, spaniel, beagle, poodle, puppy dog"
    ),
    "cat": split("cat, kitten, kitty, pussycat, feline, tomcat, tabby, house cat, kitty cat"),
    "bird": split("bird, songbird, sparrow, seagull, gull, pigeon, swallow, finch, parrot, eagle, hawk, dove, birdie"),
    "balloon": split("balloon, hot air balloon, hot-air balloon, air balloon"),
    "plane": split(
        "plane, airplane, aeroplane, aircraft, jet, propeller plane, airliner, passenger plane, jet plane, "
        "biplane, toy plane"
    ),
    "ball": split("ball, rubber ball, football, striped ball, soccer ball, toy ball, play ball, beach ball"),
    "robot": split("robot, android, droid, bot, toy robot, automaton, humanoid robot, robo, mech"),
    "person": split(
        "person, man, woman, guy, lady, boy, girl, pedestrian, walker, hiker, human, human being, "
        "gentleman, kid, child, teenager, adult, stranger, farmer, tourist, traveller, grandfather, "
        "grandmother, student"
    ),
    "horse": split("horse, pony, stallion, mare, foal, colt, steed, mustang horse"),
    "truck": split("truck, lorry, pickup truck, pickup, dump truck, cargo truck, delivery truck, semi truck, big rig"),
    "boat": split(
        "boat, sailboat, ship, sailing boat, yacht, vessel, fishing boat, sailing ship, dinghy, rowboat, motorboat"
    ),
}
#: whom the motorcycle carries: {x} is the machine without an article, {ax} with one
RIDERS = split(
    "man with a beard riding {ax}; man with a beard on {ax}; bearded man riding {ax}; bearded man on {ax}; "
    "bearded biker on {ax}; biker with a beard riding {ax}; biker with a beard on {ax}; {x} ridden by a bearded man; "
    "{x} ridden by a man with a beard; {x} with a bearded rider; {x} driven by a bearded man; bearded guy on {ax}; "
    "bearded motorcyclist on {ax}; man who has a beard riding {ax}; man with a long beard riding {ax}; biker on {ax}; "
    "man on {ax}; man riding {ax}; rider on {ax}; guy riding {ax}; motorcyclist on {ax}".replace(";", ",")
)
BEARDED = split(
    "man with a beard, bearded man, bearded biker, biker with a beard, bearded guy, bearded rider, "
    "biker, man, guy, man with a long beard, rugged bearded man, motorcyclist"
)
ADJECTIVES = {
    "motorcycle": split("heavy, classic, loud, roaring, powerful, chrome, vintage"),
    "car": split(
        "small, shiny, new, old, compact, modern, classic, vintage, elegant, polished, retro, sporty, brand new"
    ),
    "bus": split("big, long, crowded, large, empty, old, modern, noisy, huge, packed"),
    "dog": split(
        "happy, friendly, playful, loyal, fluffy, cute, little, small, brave, hungry, furry, adorable, good, "
        "energetic, shaggy"
    ),
    "cat": split(
        "curious, little, fluffy, sleepy, cute, elegant, playful, sneaky, lazy, furry, lovely, hungry, "
        "adorable, stray, fat"
    ),
    "bird": split("little, small, tiny, graceful, wild, free, lonely, feathered, singing, majestic, cheerful"),
    "balloon": split("big, large, round, huge, silent, colourful, giant, striped, floating"),
    "plane": split("small, big, loud, old, modern, vintage, shiny, lonely, heavy"),
    "ball": split("round, bouncing, striped, bouncy, small, big, shiny, plastic, little, rolling, inflatable"),
    "robot": split(
        "friendly, little, toy, metal, clunky, shiny, futuristic, cute, rusty, giant, mechanical, helpful, boxy, tin"
    ),
    "person": split(
        "young, old, tall, smiling, elderly, cheerful, lonely, friendly, elegant, happy, tired, "
        "thoughtful, well-dressed, short"
    ),
    "horse": split("wild, strong, noble, graceful, young, beautiful, majestic, proud, powerful, free"),
    "truck": split("big, heavy, old, huge, loaded, dusty, massive, loud, large, rusty, sturdy"),
    "boat": split("little, small, wooden, old, elegant, sailing, lonely, big, proud, simple"),
}
ANY_ADJECTIVES = split(
    "beautiful, single, lone, cute, nice, pretty, funny, cartoon, lovely, animated, simple, "
    "very small, really big, cool, amazing, famous, mysterious, perfect, strange, tiny, giant, "
    "charming, cheerful, stylish, wonderful, awesome, gorgeous, mighty, plain, ordinary, "
    "favourite, favorite, magical"
)
CLOTHES = split(
    "coat, jacket, shirt, sweater, dress, hoodie, t-shirt, suit, pullover, outfit, raincoat, jumper, top, uniform"
)
OPEN_WINGS = split("with open wings, with wide wings, flapping its wings, spreading its wings")
TAILS = {  # what may follow a noun and says nothing new
    "bird": OPEN_WINGS,
    "dog": split("wagging its tail, with floppy ears, with its tongue out, full of energy"),
    "cat": split("with its tail up, with soft paws, on quiet paws, with whiskers"),
    "car": split("with shiny wheels, with its windows down, with new tyres"),
    "bus": split("full of people, full of passengers, with many windows, packed with tourists"),
    "robot": split("with an antenna, made of metal, with square feet, with glowing eyes"),
    "horse": split("with a flowing mane, with a long tail, without a rider"),
    "truck": split("with a heavy load, with big wheels, carrying cargo"),
    "boat": split("with a sail, with full sails, with a mast"),
    "balloon": split("with a basket, with a small basket, carrying passengers"),
    "plane": split("with two wings, with a propeller"),
    "ball": split("with stripes, made of rubber"),
    "person": split("with a hat, with short hair, lost in thought, on foot"),
    "motorcycle": split("with a loud engine, with two wheels"),
}
SHADES = {
    "red": split(
        "crimson, scarlet, ruby, cherry red, bright red, dark red, ruby red, fire-engine red, vermilion, "
        "deep red, tomato red, blood red, reddish, vivid red, carmine"
    ),
    "yellow": split(
        "golden, gold, lemon, lemon yellow, bright yellow, amber, mustard, sunflower yellow, "
        "canary yellow, light yellow, yellowish, mustard yellow, golden yellow, banana yellow"
    ),
    "green": split(
        "lime, emerald, lime green, bright green, dark green, olive, jade, light green, forest green, "
        "mint green, greenish, grass green, emerald green, mint"
    ),
    "blue": split(
        "navy, navy blue, azure, sky blue, bright blue, dark blue, light blue, cobalt, royal blue, sapphire, "
        "bluish, deep blue, cobalt blue, ultramarine, indigo, baby blue"
    ),
    "purple": split(
        "violet, lilac, lavender, plum, bright purple, dark purple, light purple, mauve, deep purple, "
        "purplish, amethyst, royal purple, magenta"
    ),
    "white": split(
        "ivory, pure white, bright white, milky, pearl white, chalk white, off-white, milk white, whitish, "
        "creamy white, alabaster, plain white"
    ),
}
JOINERS = split(
    "and; and; and; and; and; next to; next to; together with; beside; alongside; with; near; "
    "along with; accompanied by; side by side with; as well as; plus; &; and also; close to; "
    "by the side of".replace(";", ",")
)

# ---- what they do ----------------------------------------------------------------------------------------

#: base, third person, participle, past, past participle
IRREGULAR = {
    verb.split()[0]: tuple(verb.split())
    for verb in split(
        "drive drives driving drove driven, go goes going went gone, run runs running ran run, "
        "fly flies flying flew flown, ride rides riding rode ridden, speed speeds speeding sped sped, "
        "stride strides striding strode stridden, creep creeps creeping crept crept, "
        "travel travels travelling travelled travelled, trot trots trotting trotted trotted, "
        "flap flaps flapping flapped flapped, hop hops hopping hopped hopped, jog jogs jogging jogged jogged, "
        "step steps stepping stepped stepped, sweep sweeps sweeping swept swept, spin spins spinning spun spun, "
        "leap leaps leaping leapt leapt, hurry hurries hurrying hurried hurried, wing wings winging winged winged, "
        "come comes coming came come, cut cuts cutting cut cut, trundle trundles trundling trundled trundled, "
        "whizz whizzes whizzing whizzed whizzed, wander wanders wandering wandered wandered, "
        "dawdle dawdles dawdling dawdled dawdled, plod plods plodding plodded plodded, "
        "pad pads padding padded padded, tiptoe tiptoes tiptoeing tiptoed tiptoed"
    )
}
VERBS = {
    "motorcycle": split("drive, go, ride, travel, roll, cruise, move, pass"),
    "car": split("drive, roll, go, move, travel, cruise, pass, drive along"),
    "bus": split("drive, roll, go, move, travel, pass, drive along"),
    "dog": split("run, trot, walk, move, run along, go, jog, wander, hop, play"),
    "cat": split("run, walk, move, go, trot, prowl, wander, step, sneak along, pad"),
    "bird": split("fly, flap, glide, soar, move, fly along, sail, wing, travel"),
    "balloon": split("float, drift, fly, sail, move, hover along, glide, travel"),
    "plane": split("fly, cruise, glide, soar, move, fly along, travel, pass"),
    "ball": split("bounce, roll, hop, jump, move, bounce along, go, spin, roll along"),
    "robot": split("walk, march, stride, move, step, go, walk along, stomp"),
    "person": split("walk, stride, go, step, walk along, move, march, hike, walk, walk, pass"),
    "horse": split("trot, run, move, go, walk, canter, travel, run along"),
    "truck": split("drive, roll, go, move, travel, pass, rumble, drive along, haul along"),
    "boat": split("sail, float, go, move, cruise, travel, glide, sail along, row, pass"),
}
#: verbs that say the speed too
QUICK_VERBS = {
    "motorcycle": split("race, speed, rush, roar along, hurtle, tear along"),
    "car": split("race, speed, rush, hurtle, dash, whizz"),
    "bus": split("race, speed, rush, hurtle, hurry"),
    "dog": split("race, dash, sprint, rush, hurry, charge"),
    "cat": split("race, dash, sprint, rush, dart, hurry"),
    "bird": split("race, dart, rush, dash, speed"),
    "balloon": split("race, rush, speed"),
    "plane": split("race, speed, rush, hurtle"),
    "ball": split("race, rush, dart, speed"),
    "robot": split("rush, hurry, race, dash, sprint"),
    "person": split("run, rush, hurry, sprint, dash, jog"),
    "horse": split("gallop, race, charge, rush, dash, gallop, sprint"),
    "truck": split("race, speed, rush, hurtle, thunder along"),
    "boat": split("race, speed, rush, dash"),
    "": split("race, rush, speed, hurry, dash"),
}
SLOW_VERBS = {
    "motorcycle": split("creep, crawl, trundle"),
    "car": split("creep, crawl, trundle, inch along"),
    "bus": split("crawl, creep, trundle"),
    "dog": split("stroll, amble, plod, saunter"),
    "cat": split("stroll, creep, saunter, amble, tiptoe"),
    "bird": split("drift along, hover along"),
    "balloon": split("creep, inch along"),
    "plane": split("creep, crawl"),
    "ball": split("creep, crawl, inch along"),
    "robot": split("plod, trudge, shuffle, crawl"),
    "person": split("stroll, amble, saunter, plod, trudge, shuffle, dawdle"),
    "horse": split("amble, plod, stroll, saunter"),
    "truck": split("crawl, creep, trundle, inch along"),
    "boat": split("creep, crawl, inch along"),
    "": split("crawl, creep, dawdle, inch along"),
}
BOTH_VERBS = split("move, go, travel, pass, move along, go along, move together, go together, come along")
AERIAL = ("bird", "balloon", "plane")
WHEELED = ("motorcycle", "car", "bus", "truck")
PEOPLE = ("person", "robot")

# ---- where -----------------------------------------------------------------------------------------------

PLACE_WORDS = {
    "street": split(
        "on the street, on the street, on a street, down the street, in the city, on a city street, "
        "in town, on the road, along the road, on the highway, through the city, through the streets, "
        "in the street, downtown, down the road, on the avenue, on a busy street, along the avenue, "
        "in the middle of the street, through town, in a city, past the houses, in front of houses, "
        "on main street, on an urban street, along a quiet street, on the asphalt, on the pavement, "
        "in the suburbs, down the boulevard, in an urban neighbourhood, between tall buildings, "
        "past skyscrapers, in a big city, down the lane, in the city centre, on a road, "
        "along the street, on an empty road, in the neighborhood"
    ),
    "beach": split(
        "on the beach, on the beach, on a beach, by the sea, along the shore, at the seaside, "
        "on the sand, by the ocean, at the beach, along the coast, on the shore, near the sea, "
        "by the seaside, on a sandy beach, on the coast, beside the ocean, near the water, by the water, "
        "on the seashore, along the beach, by the waves, on the sandy shore, on a tropical beach, "
        "at the shore, on the waterfront, near the ocean, along the seashore, at the coast, "
        "in front of the sea, by the blue sea, next to the waves, along the coastline, on an empty beach, "
        "at the bay, under palm trees by the sea, on golden sand"
    ),
    "meadow": split(
        "in a meadow, in the meadow, across the meadow, in the countryside, on the grass, "
        "in a grassy field, among trees and flowers, through a meadow, in a field, across a field, "
        "on a meadow, in the fields, in the park, through the grass, in the green grass, "
        "on a green meadow, in a flowery meadow, across the grass, in the country, on the lawn, "
        "in a field of flowers, through the fields, on a farm, in a pasture, among the flowers, "
        "between the trees, in nature, in the garden, across the countryside, in tall grass, in a park, "
        "over the pasture, on the prairie, on the green field, in a lush meadow"
    ),
    "mountains": split(
        "in the mountains, in the mountains, past the mountains, below high mountain peaks, "
        "in the alps, in front of mountains, through a mountain valley, through the mountains, "
        "among the mountains, near the mountains, in the hills, across the hills, in a valley, "
        "through the valley, between the mountains, under the peaks, in the highlands, "
        "past high peaks, in mountain scenery, along a mountain trail, on a mountain pass, "
        "at the foot of a mountain, up in the mountains, in a mountain landscape, below the summit, "
        "along the cliffs, among rocky peaks, on a mountain, by the mountains, through the hills, "
        "past the rocks, in the high mountains, on a rocky slope, through the alps, along the ridge, "
        "before a mountain range"
    ),
}
ABOVE = {
    "street": split(
        "over the street, above the city, over the road, above the houses, over the rooftops, "
        "over the city, over town, high above the streets"
    ),
    "beach": split(
        "over the beach, above the sea, over the ocean, above the beach, over the waves, over the sea, "
        "above the shore, over the coast"
    ),
    "meadow": split(
        "over the meadow, above the fields, over the grass, above the meadow, over the fields, "
        "above the trees, over the countryside"
    ),
    "mountains": split(
        "over the mountains, above the peaks, over the hills, above the mountains, "
        "above the valley, over the alps, over the summits"
    ),
}
AFLOAT = split(
    "on the sea, on the water, across the bay, on the waves, at sea, on the ocean, over the waves, "
    "across the sea, off the coast, along the coast, near the beach, by the beach, past the beach, "
    "along the shore"
)
SPOTS = {  # nouns, for lists and for 'the place is ...'
    "street": split(
        "a street, the street, a city street, the city, street, city, a road, urban street, downtown, "
        "road, city road, a town, an avenue, a highway, city streets, town"
    ),
    "beach": split(
        "a beach, the beach, beach, the seaside, seaside, a sandy beach, the shore, sandy beach, "
        "ocean beach, the coast, sea, coast, the seashore, ocean, tropical beach, sea shore"
    ),
    "meadow": split(
        "a meadow, the meadow, meadow, grassy field, a green meadow, the countryside, countryside, "
        "a field, grass, park, green grass, a park, field of flowers, flower meadow, fields, nature"
    ),
    "mountains": split(
        "the mountains, mountains, mountain landscape, the alps, alps, mountain valley, "
        "a mountain valley, high mountains, a mountain range, mountain, hills, mountain peaks, "
        "rocky mountains, the hills, highlands"
    ),
}

# ---- under what sky --------------------------------------------------------------------------------------

SKY_LEADS = {
    "sunny": split(
        "sunny day, a bright sunny day, clear blue sky, sunshine, bright daylight, a sunny day, sunny, "
        "sunny weather, bright sun, a sunny morning, a sunny afternoon, broad daylight, a clear day, "
        "blue sky, warm sunshine, a beautiful summer day, bright sunlight, good weather, summer, "
        "midday sun, noon, daytime, a warm day, cloudless sky, clear skies, summertime, a hot day"
    ),
    "sunset": split(
        "sunset, a golden sunset, evening light, dusk, a glowing evening sky, evening, golden hour, "
        "sundown, twilight, sunrise, dawn, a beautiful sunset, setting sun, sunset sky, "
        "warm evening light, a fiery sunset, sunset light, the evening, late evening sun, "
        "an orange sunset, romantic sunset, the last light of day"
    ),
    "night": split(
        "starry night, a night full of stars, night, moon and stars, a dark night, nighttime, "
        "a moonlit night, midnight, starry sky, night sky, full moon, moonlight, stars, darkness, "
        "a clear night, night time, late night, night scene, a quiet night, the middle of the night, "
        "bright stars, the moon"
    ),
    "snow": split(
        "snowy day, snowfall, a winter day, falling snow, snow, a snowy day, winter, snowy, snowy weather, "
        "blizzard, snowflakes, a cold winter day, snowstorm, heavy snow, light snow, winter weather, "
        "snowing, a snowy winter, white winter, wintertime, frost and snow, icy weather"
    ),
    "rain": split(
        "rain, rainy day, a rainy day, heavy rain, rainy weather, falling rain, rainfall, rainy, "
        "raindrops, a storm, thunderstorm, drizzle, downpour, pouring rain, raining, stormy weather, "
        "rain shower, light rain, a wet day, storm, a rain storm, bad weather, a thunderstorm, "
        "wet weather, monsoon"
    ),
}
SKY_WORDS = {
    "sunny": split(
        "on a sunny day, in the sunshine, under a clear blue sky, in bright sunlight, at noon, "
        "in the sun, in the sunlight, in sunny weather, under the sun, on a bright sunny day, "
        "on a clear day, by day, during the day, in daylight, in broad daylight, at midday, "
        "on a summer day, under a blue sky, in summer, on a sunny morning, on a sunny afternoon, "
        "in good weather, in the warm sun, under the bright sun, in the daytime, in the afternoon, "
        "on a hot day, under a cloudless sky"
    ),
    "sunset": split(
        "at sunset, at dusk, in the evening light, in the evening, under a glowing sunset sky, "
        "at sundown, at sunrise, at dawn, during sunset, at golden hour, during the golden hour, "
        "in the sunset, in the setting sun, as the sun goes down, at twilight, as the sun sets, "
        "while the sun sets, under an evening sky, before a sunset, into the sunset, during sunrise, "
        "in the glow of the sunset, as evening falls, in golden evening light"
    ),
    "night": split(
        "at night, under the stars, on a starry night, in the moonlight, at midnight, in the night, "
        "in the dark, during the night, by night, under the moon, late at night, after dark, "
        "under a starry sky, by moonlight, on a dark night, under the night sky, at night time, "
        "in darkness, beneath the stars, on a moonlit night, under a full moon, "
        "in the middle of the night, in the starlight"
    ),
    "snow": split(
        "in the snow, while snow falls, on a snowy day, in falling snow, in winter, in a snowstorm, "
        "during a snowfall, in the winter, while it is snowing, in a blizzard, in heavy snow, "
        "on a winter day, in snowy weather, as snow falls, through the snow, among snowflakes, "
        "on a cold winter day, in the white snow, in the falling snow, when it snows, while it snows, "
        "in wintertime, in the cold snow"
    ),
    "rain": split(
        "in the rain, on a rainy day, while it rains, in heavy rain, in a storm, while it is raining, "
        "during a storm, in pouring rain, in rainy weather, in the pouring rain, through the rain, "
        "in falling rain, in a thunderstorm, under the rain, in a downpour, in stormy weather, "
        "while rain falls, in a drizzle, as the rain falls, during a thunderstorm, in the wet, "
        "in light rain, when it rains, under rain clouds, in bad weather"
    ),
}
SKY_CLAUSES = {
    "sunny": split(
        "the sun is shining, it is a sunny day, the sky is clear and blue, it is sunny, the sun shines, "
        "the weather is sunny, it is bright and sunny, it's sunny, there is not a cloud in the sky, "
        "it is noon, the day is sunny, the sun is high in the sky, it's a sunny day, the sky is blue, "
        "it is summer, it is daytime"
    ),
    "sunset": split(
        "the sun is setting, it is evening, it is sunset, the evening sky glows, the sun goes down, "
        "it is dusk, the sun is going down, the sky glows at sunset, it's sunset, it is early dawn, "
        "the sun is low, the sun sets, it's evening, the sun is rising"
    ),
    "night": split(
        "it is night, the stars are out, the moon is shining, it is a starry night, the night is dark, "
        "it is midnight, it's night, stars fill the sky, it is dark, the moon shines, "
        "it is late at night, the sky is full of stars, it is nighttime, it's dark outside, "
        "the stars are shining"
    ),
    "snow": split(
        "it is snowing, snow is falling, it is winter, snow falls, it's snowing, the weather is snowy, "
        "it is a snowy day, snowflakes are falling, there is a lot of snow, everything is covered in snow, "
        "it snows, it's winter, snow is coming down"
    ),
    "rain": split(
        "it is raining, rain is falling, it rains, it's raining, the weather is rainy, it is a rainy day, "
        "rain falls, it is pouring, there is a storm, it is stormy, a storm is raging, it's pouring, "
        "raindrops are falling, it is wet and rainy, the rain pours down, thunder is rolling"
    ),
}

# ---- which way and how fast ------------------------------------------------------------------------------


def both_ways(text: str) -> dict[str, tuple[str, ...]]:
    """The phrases for either direction: HERE is the one, THERE the other."""
    return {
        way: split(text.replace("THERE", other).replace("HERE", way))
        for way, other in (("left", "right"), ("right", "left"))
    }


DIRECTION_WORDS = both_ways(
    "to the HERE, to the HERE, to the HERE, from THERE to HERE, from THERE to HERE, towards the HERE, "
    "toward the HERE, HEREwards, HEREward, HERE, from the THERE to the HERE, to the HERE side, "
    "in the HERE direction, off to the HERE, towards the HERE side, out to the HERE, over to the HERE, "
    "across from THERE to HERE, towards the HERE edge of the picture, to the HERE of the screen, to HERE, "
    "into the HERE side of the frame, from the THERE side to the HERE side, in direction HERE"
)
DIRECTION_TAGS = both_ways(
    "to the HERE, heading HERE, HERE, from THERE to HERE, moving HERE, going HERE, HEREwards, towards the HERE, "
    "THERE to HERE, heading to the HERE, facing HERE, moving to the HERE, going to the HERE, direction HERE, "
    "direction: HERE, HERE direction, HEREward motion, headed HERE, travelling HERE, HERE-facing"
)
#: {it} is the subject's pronoun or noun; the verbs agree with it
DIRECTION_CLAUSES = both_ways(
    "{it} {goes} to the HERE, {it} {goes} from THERE to HERE, the direction is HERE, {it} {goes} HERE, "
    "{it} {is} heading HERE, {it} {is} going to the HERE, {it} {is} moving towards the HERE, {it} {heads} HERE, "
    "{it} {faces} HERE, {it} {is} facing HERE, the movement is to the HERE, {it} {is} on {its} way to the HERE, "
    "{it} {goes} towards the HERE, {it} {is} travelling HEREwards, {it} {moves} HERE"
)
SPEED_TAGS = {
    "slow": split(
        "slow motion, slow movement, low speed, slow, slow-motion, slow speed, slow pace, slowmo, slow mo, "
        "unhurried pace, gentle motion, very slow, leisurely pace, calm motion"
    ),
    "high": split(
        "high motion, fast motion, high speed, fast, fast movement, rapid motion, quick, full speed, "
        "very fast, speedy, fast pace, rapid movement, top speed, super fast, quick motion, high-speed"
    ),
}
SPEED_WORDS = {
    "slow": split(
        "slowly, slowly, in slow motion, at low speed, gently, calmly, very slowly, at a slow pace, "
        "leisurely, slow, unhurriedly, without hurry, at a leisurely pace, so slowly, rather slowly, "
        "lazily, at walking pace, in no hurry, really slowly, quite slowly, ever so slowly, peacefully, "
        "sluggishly"
    ),
    "high": split(
        "fast, fast, quickly, at high speed, at full speed, rapidly, very fast, in a hurry, swiftly, "
        "at top speed, really fast, super fast, at great speed, speedily, as fast as possible, hastily, "
        "so fast, at a fast pace, very quickly, quick, at breakneck speed, like lightning, "
        "at a rapid pace, in fast motion, with great speed, too fast, briskly"
    ),
}
SPEED_CLAUSES = {
    "slow": split(
        "{it} {is} slow, the speed is low, everything happens in slow motion, {it} {is} in no hurry, "
        "{it} {goes} slowly, {it} {moves} very slowly, the motion is slow, the pace is slow, "
        "{it} {is} moving slowly, {it} {takes} {its} time"
    ),
    "high": split(
        "{it} {is} fast, the speed is high, {it} {is} in a hurry, {it} {goes} fast, "
        "{it} {moves} very fast, the motion is fast, {it} {is} very quick, {it} {is} moving fast, "
        "the pace is fast, {it} {is} really fast"
    ),
}

# ---- what means nothing here -----------------------------------------------------------------------------

MOODS = split("""
    freedom and adventure, peace and quiet, joy and fun, cinematic, a feeling of freedom, a cheerful cartoon,
    beautiful scenery, a lovely view, dreamy atmosphere, happy mood, an epic journey, good mood, cartoon style,
    wide shot, colourful, a calm scene, a magical moment, pure joy, nostalgic mood, a peaceful atmosphere, whimsical,
    a sense of wonder, adventure, serene, dramatic, a heartwarming scene, inspiring, a quiet moment, playful mood,
    elegant and simple, a scene from a dream, full of life, calm, relaxing, an unforgettable moment, hope and courage,
    a storybook feeling, charming, romantic, mysterious mood, harmony, love, good vibes, positive energy, melancholy,
    tension, suspense, comedy, minimalism, colorful, vibrant, childlike wonder""")
FILM = split("""
    cinematic, wide shot, close-up, close up, medium shot, drone shot, aerial view, establishing shot, tracking shot,
    pan shot, camera pan, zoom in, zoom out, static camera, handheld camera, shallow depth of field, bokeh, film grain,
    35mm film, anamorphic lens, 4k, 8k, hd, full hd, ultra hd, high quality, best quality, masterpiece,
    highly detailed, detailed, realistic, photorealistic, 3d render, cgi, animation, 2d animation, anime style,
    pixar style, flat design, vector art, cartoon, illustration, children's book style, trending on artstation,
    award-winning, professional, smooth animation, smooth, looping video, seamless loop, 16 fps, 24 fps, 60 fps,
    steady camera, side view, profile view, camera follows, follow shot, dolly shot, low angle, high angle,
    bird's-eye perspective, soft lighting, volumetric lighting, natural lighting, studio quality, hyperrealistic,
    sharp focus, vivid colors, pastel style, unreal engine, octane render, documentary style, movie scene, film still,
    trailer, short film, b-roll, stock footage, viral video, music video, wide angle, telephoto, lens flare, HDR,
    RAW photo, uhd, crisp, rich details, lively, minimalist, watercolor style, hand-drawn, retro style, vhs, epic,
    trending, no text, no watermark, widescreen, vertical video""")
SHOTS = split(
    "shot, wide shot, close-up, video, clip, short clip, movie, film, animation, cartoon, scene, footage, "
    "drone shot, tracking shot, side view, picture, short video, view, gif, short film, movie scene, "
    "cinematic shot, cinematic video, aerial shot, medium shot, long shot, recording, image, sequence, "
    "establishing shot, sketch, render, 4k video, hd video, panning shot"
)
REQUESTS = split("""
    show me, please show me, can you show me, could you show me, make a video of, make a clip of, create a video of,
    generate a video of, please make a video of, I want to see, I would like to see, I'd like a video of, give me,
    please create, draw, please draw, animate, imagine, let me see, let us see, can you make a video of,
    could you generate, can you draw, can I see, can I get a video of, would you please show,
    make me a short film about, render, generate, create, we need a video of, I need a clip of, picture this:, just,
    how about, what about, film, make, I want, produce a clip of, please generate, create an animation of,
    make an animation with, could I have, please give me, I wish to see, tell a story about, prompt:, a prompt for,
    hey make a video of, hi please show, ok show me, write a scene with, video of, clip of, footage of, show,
    I dream of, visualize, visualise, depict, let's see, make it show, generate a short clip of""")
ENDINGS = split(
    "please, thanks, thank you, if you can, ok?, as a cartoon, in cartoon style, for my kids, "
    "in high quality, in 4k, as a short clip, for my website, in the style of a children's book, "
    "with love, for a birthday card, and make it beautiful, thank you very much, with nice colours, "
    "as an animation, like in a movie, cheers, if possible"
)
WATCH = split(
    "there is, there's, here is, here comes, look at, we see, you can see, one can see, I see, behold, "
    "watch, this is, this video shows, the video shows, the clip shows, the camera shows, the scene shows, "
    "in this clip we see, we are watching, the film opens with, the story is about, the camera follows, "
    "in the picture there is, it shows, our hero is, once upon a time there was, everybody looks at, "
    "the viewer sees, meet, notice"
)
NAMES = split(
    "The Adventure, The Journey, A Day Out, On the Move, Scene 1, Scene 2, Take 1, Episode 1, Chapter One, "
    "Test, Opening scene, Final shot, Trailer, Prompt, Idea, Video, Clip, Storyboard, Shot list, Act one, "
    "My film, Untitled"
)
OPENINGS = split(
    """
    This is a quiet and wonderful little cartoon world where every line is drawn with love and patience;
    The whole world seems to hold its breath for one long moment and nothing else matters any more;
    With a quiet melody in the background and a smile on every face the story finally begins;
    It feels as if time itself had stopped and only this one simple picture were there to remember;
    Somewhere far from all the noise and the worries of ordinary life a tiny story is told without any words;
    A masterpiece of modern animation that takes the viewer along on an unforgettable and emotional adventure;
    There are moments that one never forgets because they are so simple and so full of beauty and meaning;
    The camera opens on a carefully composed frame with rich textures and wonderful detail in every corner;
    Nobody knows where the journey began or where it will end but everyone who watches feels the same deep happiness;
    The atmosphere is full of hope and wonder like a page from a favourite old picture book;
    This is a story about courage and friendship and about the great freedom of being on the way;
    Shot with great care by an award-winning crew and edited with a fine sense of rhythm and harmony;
    Every single detail in the frame has been placed with precision to give the picture depth and character;
    You can almost feel the air and hear the sounds as the scene unfolds before your eyes;
    The style is playful and warm with clean shapes and clear outlines that children everywhere will adore;
    An elegant composition leads the eye through the picture and tells us that something special is about to happen;
    Like a memory from childhood it comes back again and again and makes the heart feel light;
    As the music grows louder the audience leans forward and waits with great excitement for what comes next""".replace(
        ",", " "
    ).replace(";", ",")
)

# ---- what the grammar puts around these ------------------------------------------------------------------

PLURALS = {
    "person": "people",
    "man": "men",
    "woman": "women",
    "child": "children",
    "aircraft": "aircraft",
    "gentleman": "gentlemen",
    "bus": "buses",
}
DETERMINERS = split("one, this, my, that, our, the, a single, another")
#: how a verb may stand, besides its plain tenses
TENSES = split(
    "will {base}, was {participle}, is going to {base}, has {past_participle}, has been {participle}, "
    "is seen {participle}, can be seen {participle}, may {base}, will be {participle}, starts to {base}, "
    "keeps {participle}, loves to {base}, could {base}, is {participle}"
)
TENSES_OF_MANY = split(
    "will {base}, were {participle}, are going to {base}, have {past_participle}, have been {participle}, "
    "are seen {participle}, can be seen {participle}, may {base}, will be {participle}, start to {base}, "
    "keep {participle}, love to {base}, could {base}, are {participle}"
)
SEEN = split(
    "is seen, can be seen, is shown, is filmed, was seen, is captured, was filmed, is pictured, may be seen, "
    "is watched, was recorded, is being filmed"
)
SEEN_MANY = split(
    "are seen, can be seen, are shown, are filmed, were seen, are captured, were filmed, are pictured, "
    "may be seen, are watched, were recorded, are being filmed"
)
SEEN_FIRST = split("Seen here:, Shown:, Pictured:, On the screen:, Coming up:, In the picture:, Featuring, Starring")
#: verbs of the clauses, for one and for several
AGREEMENT = {"goes": "go", "is": "are", "heads": "head", "faces": "face", "moves": "move", "takes": "take"}
WORN = split("in {wear}, wearing {wear}, dressed in {shade}, with {wear}, in {shade}, in {shade} clothes")
OF_COLOUR = split("that is, which is, that is, whose colour is, of the colour, in the colour")
ITS_COLOUR = split(
    "it is {colour}, its colour is {colour}, it's {colour}, the colour is {colour}, color: {colour}, "
    "it is {how} {colour}"
)
PLACE_CLAUSES = split(
    "the place is {spot}, the background is {spot}, the scene is {spot}, it happens {where}, "
    "the scene is set {where}, all this happens {where}, the setting is {spot}, we are {where}, "
    "it takes place {where}, everything happens {where}"
)
#: words that stand in the grammar's code alone
GRAMMAR = split(
    "some, both, they, wear, wears, are, were, was, painted, coloured, colored, walking, with, while, their"
)
