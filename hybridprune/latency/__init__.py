"""Times of layers and of whole networks, deployed: tables of layers by the clock, and the clock that budgets ask."""
