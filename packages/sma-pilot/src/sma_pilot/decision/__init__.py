"""Who decided what about a judged run, signed over every file that the decision rests on."""
