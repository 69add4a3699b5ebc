"""The option --level, by the commands a user types, on a model of one level without a name."""


def test_a_level_that_the_model_does_not_have(equipot, workspace, tmp_path):
    result = equipot("evaluate", workspace.run, workspace.test, "--level", "pbe0")
    assert result.code == 1 and "no level 'pbe0'. Its only one has no name" in result.err
    result = equipot("deploy", workspace.run, "--output", tmp_path / "model.pt", "--level", "pbe0")
    assert result.code == 1 and "no level 'pbe0'" in result.err and not (tmp_path / "model.pt").exists()
    result = equipot("evaluate", workspace.model, workspace.test, "--level", "pbe0")
    assert result.code == 1 and "deployed for a level of theory without a name, not for 'pbe0'" in result.err


def test_info_says_the_level(equipot, workspace):
    assert "not named" in equipot("info", workspace.model).out
