"""What a Point is worth: criteria, objectives, paired differences."""
