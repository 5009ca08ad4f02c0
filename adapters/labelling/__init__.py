"""Labelling: a teacher answers prompts, and the answers become a training file. Who asks the teacher, passes it in."""
