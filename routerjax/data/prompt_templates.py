"""Prompts of a simulated arena: seven domains, three levels of difficulty, written for this purpose."""

from __future__ import annotations

from collections.abc import Mapping

LEVELS = ("easy", "medium", "hard")

# {slot} is filled from SLOTS; the domain and the level decide how much the models differ on a prompt.
TEMPLATES: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "small talk": {
        "easy": (
            "Hello! I just came back from {place}. How are you today?",
            "Good morning! Tell me something nice about {animal}s.",
            "I am bored at the {venue} in {place}. Any small talk about {food}?",
            "What would you cook tonight with {food} and {food2}?",
        ),
        "medium": (
            "My friend from {place} loves {food}. Suggest a birthday present for under {number} euros.",
            "Help me word a friendly message to my neighbour in {place} about the noise of their {animal}.",
            "Suggest three conversation starters for a dinner with {food} and people from {place}.",
        ),
        "hard": (
            "My sister and my {relative} stopped talking after a trip to {place}. How can I bring them together without taking sides?",
            "Write a toast for the retirement of my {relative}, who spent {number} years in {place}: funny, moving, under a minute.",
        ),
    },
    "translation": {
        "easy": (
            "How do you say '{animal}' in {language}?",
            "Translate into {language}: the {food} is on the table.",
            "What is the {language} word for {venue}?",
        ),
        "medium": (
            "Translate into {language}: I would like to book a table for {number} people near the {venue} in {place}.",
            "Correct my {language} sentence and explain the mistake: 'the {animal} were eat {number} {food}'.",
        ),
        "hard": (
            "Translate this idiom into {language} so that it keeps its irony: he sold his {animal} to buy {food} in {place}.",
            "Compare how {language} and {language2} express an action that was almost completed, with {number} examples.",
        ),
    },
    "facts": {
        "easy": (
            "What is the capital of the country where {place} lies?",
            "Which {animal}s live near {place}?",
            "Is {food} a fruit or a vegetable?",
        ),
        "medium": (
            "What was {place} known for around the year {year}?",
            "Why do {animal}s need vitamin D, and where do they get it?",
            "When did {food} first reach Europe, and by which route?",
        ),
        "hard": (
            "Which treaty settled the borders near {place} after {year}, and which clause of it was disputed?",
            "How do the metabolic pathways of {animal}s differ from those of {animal2}s under starvation, at the level of enzymes?",
            "Give the strongest evidence for and against the theory that trade in {food} caused the crisis of {year}.",
        ),
    },
    "writing": {
        "easy": (
            "Write one sentence about a {animal} who likes {food}.",
            "Give me {number} words that rhyme with 'day' for a poem on {place}.",
            "Write a short greeting card for my {relative}.",
        ),
        "medium": (
            "Write a haiku about {place} in {year}, with a {animal} in it.",
            "Draft a polite complaint to the {venue} in {place} about cold {food}.",
            "Summarise the life of a {animal} in the style of a newspaper from {year}.",
        ),
        "hard": (
            "Write a sonnet about {food} in iambic pentameter in which the first letters of the lines spell a city near {place}.",
            "Write the opening of a novel set in {place} in {year}, told by an unreliable {animal}, with no adjective at all.",
        ),
    },
    "mathematics": {
        "easy": (
            "What is {number} plus {number2}?",
            "Double {number} and subtract {digit}.",
            "How many minutes are {number} hours?",
        ),
        "medium": (
            "A train to {place} leaves at 9:{number} and travels {number2} km at {number3} km/h. When does it arrive?",
            "Solve for x: {digit}x + {number} = {number2}, and check the result.",
            "What is the probability of drawing {digit} red balls in a row from {number} red and {number2} blue ones?",
        ),
        "hard": (
            "Prove that x^{digit} + y^{digit} is divisible by x + y exactly when the exponent is odd, and generalise to {number} variables.",
            "Find the limit of the sum of k^{digit} / n^{number} for k up to n, and bound the error for n = {number2}.",
            "Show that a group of order {number} times {number2} has a normal subgroup, or give a counterexample with proof.",
            "Derive the eigenvalues of the {number} by {number} tridiagonal matrix with {digit} on the diagonal and -1 beside it.",
        ),
    },
    "code": {
        "easy": (
            "Write a {programming} function that returns the larger of {number} and {number2}.",
            "How do I print '{food}' in {programming}?",
            "How do I make a list of {number} zeros in {programming}?",
        ),
        "medium": (
            "Write a {programming} function that groups {animal} names by their first letter and sorts each group.",
            "My {programming} loop over {number} files is slow. How do I find out which line takes the time?",
            "Write a {programming} unit test for a function that parses prices of {food}.",
        ),
        "hard": (
            "Implement a lock-free queue for {number} producers in {programming} and say which memory orderings it needs.",
            "Design a rate limiter for {number} servers in {programming} that survives network partitions; prove its bound.",
            "Write a {programming} parser for arithmetic with user-defined precedence, error recovery and O(n) time for {number2} tokens.",
            "Find the race in a {programming} cache with {number} readers where eviction and resize interleave, and fix it without a lock.",
        ),
    },
    "law and finance": {
        "easy": (
            "What does a notary in {place} do?",
            "What is the difference between gross and net on a payslip of {number} euros?",
        ),
        "medium": (
            "Can a landlord in {place} keep the deposit because of a {animal}?",
            "Compare renting a {venue} for {number} months with buying it, in simple terms.",
        ),
        "hard": (
            "A company in {place} pledged {food} stocks twice to secure loans of {number} and {number2} million. Who ranks first, and why?",
            "Value a callable bond with {digit} % coupon and {number} years to run under a one-factor short-rate model; list the assumptions.",
            "Analyse whether a sale of a {venue} in {place}, rescinded after {number} days, triggers transfer tax twice.",
        ),
    },
}

_NUMBERS = tuple(str(number) for number in range(11, 60))
SLOTS: Mapping[str, tuple[str, ...]] = {
    "animal": ("fox", "otter", "heron", "badger", "salmon", "beetle", "lynx", "goat", "raven", "newt", "bat", "whale"),
    "animal2": ("hedgehog", "sparrow", "trout", "camel", "seal", "moth"),
    "digit": ("3", "4", "5", "6", "7", "8", "9"),
    "food": ("rice", "plums", "lentils", "cheese", "tomatoes", "bread", "pepper", "tea", "sugar", "figs", "oats"),
    "food2": ("onions", "lemons", "mushrooms", "spinach", "eggs", "beans"),
    "language": ("Portuguese", "Finnish", "Swahili", "Korean", "Polish", "Hindi", "Welsh", "Greek"),
    "language2": ("Turkish", "Japanese", "Hungarian", "Arabic"),
    "number": _NUMBERS,
    "number2": tuple(str(number) for number in range(60, 140)),
    "number3": ("80", "95", "110", "125", "140"),
    "place": ("Lisbon", "Tampere", "Mombasa", "Busan", "Gdansk", "Pune", "Cardiff", "Thessaloniki", "Quito", "Hobart"),
    "programming": ("Python", "Rust", "C++", "Go", "Java", "Haskell", "Kotlin"),
    "relative": ("uncle", "aunt", "grandmother", "cousin", "brother", "mother-in-law"),
    "venue": ("library", "bakery", "swimming pool", "theatre", "workshop", "garage", "greenhouse"),
    "year": tuple(str(year) for year in range(1720, 1990, 15)),
}
