"""Transfer: what a trained image tower is worth for another task, frozen or trained further, beside a floor and a ceiling."""
