"""The wording of the demo: several phrasings per task, and small talk without a picture.

Slots: {any} a word for the object, {s} a shape, {c} a colour, {o} and {o2} unambiguous names, {a} a
name with its article, {p} a plural, {r} a relation, {d} a digit, {k} an image, {f} a frame.
"""

from __future__ import annotations

PHRASINGS: dict[str, tuple[str, ...]] = {
    "colour": (
        "What color is the {any}?", "What colour is the {any}?", "What is the color of the {any}?",
        "Which color does the {any} have?", "What color is it?", "What color is this {any}?",
        "Tell me the color of the {any}.",
    ),
    "shape": (
        "What shape is this?", "What shape is it?", "Which shape do you see?",
        "What is the shape of the object?", "What shape is in the image?",
        "What shape is the {c} object?", "Which shape is shown in the picture?",
    ),
    "colour_of": (
        "What color is the {s}?", "What colour is the {s}?", "What is the color of the {s}?",
        "Which color does the {s} have?", "Tell me the color of the {s}.",
        "What color is the {s} in the image?",
    ),
    "shape_of": (
        "What shape is the {c} object?", "Which shape is {c}?",
        "What is the shape of the {c} object?",
        "What is the {c} object?", "What shape does the {c} object have?", "What shape is {c}?",
    ),
    "exist": (
        "Is there {a}?", "Do you see {a}?", "Does the image contain {a}?",
        "Is there {a} in the image?",
        "Can you see {a} in the picture?", "Is {a} in the picture?", "Are there any {p}?",
        "Are there any {p} in the image?",
    ),
    "count": (
        "How many objects are there?", "How many shapes are there?",
        "How many shapes are in the image?", "How many objects do you see?", "Count the objects.",
        "What is the number of shapes?", "How many objects are in the picture?",
        "Count the shapes in the image.",
    ),
    "count_sub": (
        "How many {p} are there?", "How many {p} are in the image?", "How many {p} do you see?",
        "How many {p} are there in the image?", "Count the {p}.", "What is the number of {p}?",
        "How many {p} are in the picture?",
    ),
    "position": (
        "Where is the {o}?", "Where is the {o} in the image?", "In which corner is the {o}?",
        "Where is the {o} located?", "Which part of the image is the {o} in?",
        "Where in the picture is the {o}?", "What is the position of the {o}?",
        "In which part of the picture is the {o}?",
    ),
    "relation": (
        "Where is the {o} relative to the {o2}?", "On which side of the {o2} is the {o}?",
        "Where is the {o} compared to the {o2}?", "Where is the {o} with respect to the {o2}?",
        "Is the {o} left of, right of, above or below the {o2}?",
        "What is the position of the {o} relative to the {o2}?",
    ),
    "relation_yn": (
        "Is the {o} {r} the {o2}?", "Is the {o} located {r} the {o2}?",
        "Can you see the {o} {r} the {o2}?",
        "Does the image show the {o} {r} the {o2}?",
    ),
    "describe": (
        "Please describe the image shortly.", "Describe the image.", "What is in the image?",
        "What do you see?", "What is shown in the picture?", "Describe this picture.",
        "Please describe the image in detail.",
    ),
    "digit": (
        "Which digit is this?", "What digit is shown?", "What number is this?",
        "Which number do you see?", "What is the digit in the image?", "Read the digit.",
        "What number is written here?", "What digit is in the picture?", "What digit is this?",
        "Which number is in the image?",
    ),
    "digit_is": (
        "Is this a {d}?", "Is the digit a {d}?", "Does the image show a {d}?",
        "Is the number in the picture a {d}?",
    ),
    "parity": (
        "Is the digit even or odd?", "Is this number even or odd?", "Even or odd?",
        "Is the number shown odd or even?",
    ),
    "which": (
        "Which image has {a}?", "Which image contains {a}?", "In which image is there {a}?",
        "Which of the two images shows {a}?", "Which image shows {a}?", "Which picture has {a}?",
        "Where is {a}, in Image-1 or in Image-2?",
    ),
    "more": (
        "Which image has more objects?", "Which image contains more shapes?",
        "Which of the two images has more objects?", "Which picture has more shapes?",
        "Which image shows more objects?", "Where are more shapes, in Image-1 or in Image-2?",
    ),
    "pair_colour": (
        "What color is the {s} in {k}?", "What is the color of the {s} in {k}?",
        "Which color does the {s} have in {k}?", "In {k}, what color is the {s}?",
    ),
    "pair_shape": (
        "What shape is the {c} object in {k}?", "What is the {c} object in {k}?",
        "In {k}, what shape is the {c} object?", "Which shape is {c} in {k}?",
    ),
    "pair_count": (
        "How many objects are in {k}?", "How many shapes are there in {k}?",
        "Count the objects in {k}.",
        "In {k}, how many shapes do you see?",
    ),
    "motion": (
        "In which direction does the {any} move?", "Which way is the {any} moving?",
        "Where is the {any} moving?", "In what direction is the {any} moving?",
        "Which direction does the {any} move?", "What is the direction of the {any}?",
        "Does the {any} move left, right, up or down?", "How does the {any} move?",
    ),
    "video_colour": (
        "What color is the moving object?", "What color is the object in the video?",
        "What color is the {s}?", "What is the color of the object?",
    ),
    "video_shape": (
        "What shape is moving?", "What shape is the object in the video?",
        "Which shape moves in the video?", "What is the shape of the moving object?",
    ),
    "frame": (
        "Where is the {any} in {f}?", "In {f}, where is the {any}?",
        "Where is the {any} located in {f}?", "In which corner is the {any} in {f}?",
    ),
}  # fmt: skip

TEXT_ONLY: tuple[tuple[tuple[str, ...], str], ...] = (
    (("Hello", "Hi", "Hello!", "Good morning"), "Hello! Ask me about a picture."),
    (
        ("Hello, who are you?", "Who are you?", "What are you?", "What is your name?"),
        "I am a tiny InternVL demo model.",
    ),
    (
        ("What can you do?", "How can you help me?", "Please tell me a story.", "Write a poem."),
        "I answer simple questions about pictures.",
    ),
    (("Thank you.", "Thanks!", "Thank you"), "You are welcome."),
)
NO_PICTURE = "There is no image."
RELATION_WORDS = {
    "left": ("to the left of", "left of"),
    "right": ("to the right of", "right of"),
    "above": ("above", "over"),
    "below": ("below", "under"),
}
