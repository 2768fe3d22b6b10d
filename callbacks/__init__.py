"""Lightning callbacks of SnapGen-PL; they may import snapgen_pl, never the other way round."""
