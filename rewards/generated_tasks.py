"""Which tasks of reasoning-gym the reward `generated` scores, and why it leaves out the others. Data only.

Audited by reading each scorer and by running it (tests/test_rewards_generated.py): an allowed one gives a task's own
answer its full score and junk that does not hold the answer exactly 0, also after the row has been through JSON; it
runs no text as Python, and its verdict hangs on nothing that the row does not carry. reasoning-gym 0.1.25."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

ALLOWED_TASKS = (
    *("acre", "aiw", "arc_1d", "base_conversion", "basic_arithmetic", "bf", "binary_alternation"),
    *("caesar_cipher", "chain_sum", "circuit_logic", "count_bits", "count_primes", "course_schedule"),
    *("decimal_chain_sum", "dice", "family_relationships", "gcd", "isomorphic_strings", "kakurasu"),
    *("largest_island", "lcm", "leg_counting", "letter_counting", "list_functions", "mahjong_puzzle"),
    *("manipulate_matrix", "maze", "modulo_grid", "needle_haystack", "number_filtering", "number_format"),
    *("number_sequence", "palindrome_partitioning", "path_star", "products", "ransom_note", "rotate_matrix"),
    *("rotten_oranges", "self_reference", "shortest_path", "simple_equations", "simple_geometry", "sokoban"),
    *("string_manipulation", "string_splitting", "string_synthesis", "survo", "syllogism"),
    *("word_sequence_reversal", "zebra_puzzles"),
)

_EVALUATES_ANSWER = "its scorer runs the answer as Python (eval)"
_PARSES_ANSWER = "its scorer hands the answer to sympy's parse_expr, which runs it as Python"
_HAS_NO_ANSWER = "a row carries no answer of its own to hold the scorer to"
_FLOOR = "its scorer gives next to any text more than 0"
_JSON_FLOOR = "its scorer gives 0.01 for any JSON, such as []"
_ROW_OF_DIGITS = "its scorer gives a part of the score for a row of digits such as 1 2 3 4"
_NEAR = "its scorer gives a part of the score for any number that is near, such as 0"

LEFT_OUT_TASKS: Mapping[str, str] = MappingProxyType(
    {
        "ab": "its own answer is empty now and then, so that an empty text is right",
        "advanced_geometry": _FLOOR,
        "arc_agi": "its scorer gives 0.05 for an empty text, and its gold does not survive JSON (tuples become lists)",
        "binary_matrix": _EVALUATES_ANSWER,
        "bitwise_arithmetic": "its scorer runs a text of the row as Python (eval)",
        "boxnet": _HAS_NO_ANSWER,
        "calendar_arithmetic": _NEAR,
        "codeio": "its scorer gives 0.01 for any JSON object, such as {}",
        "coin_flip": "its scorer gives 0 the full score where the probability is small",
        "color_cube_rotation": _FLOOR,
        "complex_arithmetic": "its scorer gives nan the full score",
        "composite": "a mixture: its rows name the task that made them, and are scored as that task's",
        "countdown": _PARSES_ANSWER,
        "cryptarithm": "its scorer gives 0.01 for anything like A=1",
        "decimal_arithmetic": "its tolerance follows a setting that the row does not carry, and lets 0 pass for 0.0003",
        "emoji_mystery": _FLOOR,
        "figlet_font": "its scorer gives 0.1 for each letter in its place, whatever the word",
        "fraction_simplification": _FLOOR,
        "futoshiki": _ROW_OF_DIGITS,
        "game_of_life": "its scorer gives a part of the score for [[0]] and crashes on {}",
        "game_of_life_halting": "its scorer gives any text the full score where the answer is True",
        "graph_color": _HAS_NO_ANSWER,
        "group_anagrams": _JSON_FLOOR,
        "gsm_symbolic": "its scorer takes the first number of a text, and 0.01 for any; its rows are not always JSON",
        "intermediate_integration": _PARSES_ANSWER,
        "jugs": _JSON_FLOOR,
        "knight_swap": "its scorer gives 0.05 for []",
        "knights_knaves": "its scorer gives the question itself up to 0.65",
        "letter_jumble": "its scorer gives a part of the score for words that happen to be right",
        "mini_sudoku": _ROW_OF_DIGITS,
        "n_queens": _EVALUATES_ANSWER,
        "number_sorting": "its scorer gives a list of NaN the full score, and numbers that are off by 1",
        "palindrome_generation": _FLOOR,
        "polynomial_equations": _NEAR,
        "polynomial_multiplication": _PARSES_ANSWER,
        "pool_matrix": "its scorer gives 0.1 for any matrix of the right shape",
        "power_function": _FLOOR,
        "prime_factorization": "its scorer gives any number more than 0 and crashes on other text",
        "propositional_logic": _HAS_NO_ANSWER,
        "puzzle24": _PARSES_ANSWER,
        "quantum_lock": "its scorer reads the letters a, b and c of any text as moves",
        "rearc": "its scorer gives 0.05 for an empty text, and its gold does not survive JSON (tuples become lists)",
        "rectangle_count": _NEAR,
        "rubiks_cube": _HAS_NO_ANSWER,
        "rush_hour": _HAS_NO_ANSWER,
        "sentence_reordering": _FLOOR,
        "simple_integration": _PARSES_ANSWER,
        "spell_backward": "its scorer gives a part of the score for each letter that happens to be in its place",
        "spiral_matrix": _EVALUATES_ANSWER,
        "string_insertion": _EVALUATES_ANSWER,
        "sudoku": "its scorer gives a part of the score for a row of digits such as 1 2 3 4 5 6 7 8 9",
        "time_intervals": _NEAR,
        "tower_of_hanoi": "its scorer gives 0.05 for a blank text and for any legal move",
        "tsumego": _FLOOR,
        "word_ladder": "its list of words follows a setting that the row does not carry (lengths of words)",
        "word_sorting": "its scorer gives the question itself up to 0.22, and words that happen to be in their place",
    }
)
"""Task by task the first reason that would do."""
