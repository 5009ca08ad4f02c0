"""Files of training examples: the supported formats, and why a line is invalid. Gateway and trainer read them alike."""
