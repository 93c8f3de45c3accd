"""Looking inside a trained model: what it forks, what the forks are looked at, what the budget is spent on."""
