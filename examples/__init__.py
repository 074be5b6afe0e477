"""Operations that do not come with the package: how to bring your own."""
