"""Work that is done piece by piece: in this process, in others, on other machines."""
