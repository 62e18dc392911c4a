"""What is measured of a candidate: evaluations, statistics, ladders of lengths, passkeys."""
