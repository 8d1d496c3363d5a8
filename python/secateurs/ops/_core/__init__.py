"""What every operation shares: dispatch, registration, epilogues, launch tables."""
