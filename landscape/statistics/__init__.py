"""What measured losses say: minima, ruggedness, noise."""
