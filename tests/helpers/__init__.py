"""What several test modules share: small runs, damaged files, synthetic policies and critics."""
