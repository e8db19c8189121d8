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
    "box": (
        "Please provide the bounding box coordinate of the region this sentence describes: "
        "<ref>{o}</ref>",
    ),
    "number": (
        "What number is this?", "Which number is written here?", "Read the number.",
        "What number is shown?", "Which digits do you see?", "Read the digits.",
        "What is the number in the image?", "Read the digits from left to right.",
    ),
    "digit_count": (
        "How many digits are there?", "How many digits do you see?", "Count the digits.",
        "How many digits are in the image?",
    ),
    "digit_at": (
        "What is the {k} digit?", "Which digit is the {k} one?", "Which digit comes {k}?",
    ),
    "digit_exist": (
        "Is there a {d}?", "Do you see a {d}?", "Is there a {d} in the image?",
        "Does the image contain the digit {d}?",
    ),
    "word": (
        "What does the text say?", "Read the text.", "What word is this?",
        "Which word is written here?", "What is written in the image?", "Read the word.",
        "What is the word in the image?", "What does it say?",
    ),
    "printed_number": (
        "Read the number.", "What number is this?", "What number is printed here?",
        "What does it say?", "What is written in the image?", "Which number do you see?",
    ),
    "letter_at": (
        "What is the {k} letter?", "Which letter is the {k} one?", "Which letter comes {k}?",
        "What is the {k} letter of the word?",
    ),
    "letter_count": (
        "How many letters are there?", "How many letters does the word have?",
        "Count the letters.", "How many letters are in the word?",
    ),
    "letter_exist": (
        "Is there {a}?", "Does the word contain {a}?", "Do you see the letter {d}?",
        "Is the letter {d} in the word?",
    ),
    "emoji": (
        "What is this?", "What object is this?", "What is shown in the image?",
        "What do you see?", "Which object is in the picture?", "What is in the picture?",
        "Name the object.", "What does the emoji show?",
    ),
    "emoji_is": (
        "Is this {a}?", "Does the image show {a}?", "Is there {a}?", "Do you see {a}?",
        "Is there {a} in the image?",
    ),
    "emoji_where": (
        "Where is the {o}?", "Where is the {o} in the image?",
        "In which corner is the {o}?", "What is the position of the {o}?",
    ),
    "emoji_at": (
        "What is at the {k}?", "Which object is at the {k}?", "What do you see at the {k}?",
    ),
    "flag": (
        "Which country's flag is this?", "Whose flag is this?", "What flag is this?",
        "Which flag is shown?", "To which country does this flag belong?",
        "The flag of which country do you see?",
    ),
    "flag_is": (
        "Is this the flag of {c}?", "Does the image show the flag of {c}?",
        "Do you see the flag of {c}?",
    ),
    "highest": (
        "Which bar is the highest?", "Which bar is highest?", "What color is the highest bar?",
        "Which bar has the largest value?", "What is the color of the tallest bar?",
        "Which color has the highest value?",
    ),
    "lowest": (
        "Which bar is the lowest?", "Which bar is lowest?", "What color is the lowest bar?",
        "Which bar has the smallest value?", "What is the color of the shortest bar?",
        "Which color has the lowest value?",
    ),
    "value": (
        "What is the value of the {c} bar?", "What value does the {c} bar have?",
        "How high is the {c} bar?", "What is the value of {c}?", "Read the value of the {c} bar.",
    ),
    "bars": (
        "How many bars are there?", "How many bars does the chart have?", "Count the bars.",
        "How many bars do you see?",
    ),
    "higher": (
        "Is the {c} bar higher than the {c2} bar?", "Is {c} higher than {c2}?",
        "Does {c} have a larger value than {c2}?",
    ),
    "bar_at": (
        "What color is the {k} bar?", "Which color does the {k} bar have?",
        "What is the color of the {k} bar?",
    ),
    "photo": (
        "What is this?", "What is shown in the photo?", "What do you see?",
        "What is in the picture?", "What does the photo show?", "What is in the image?",
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
