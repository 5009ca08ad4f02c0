"""People's part in judging: pairs of answers, blind, and how far a judge agrees with what they say of them."""
