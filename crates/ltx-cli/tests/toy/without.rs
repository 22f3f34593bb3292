//! A program that was built without files in `toy/`: the model is missed with a clear message, and nothing is written.

use crate::program::{fail, ltx};

fn refuse(arguments: &[&str]) {
    let folder = tempfile::tempdir().unwrap();
    let mut command = ltx(&["generate", "a red circle moves right on a blue background"]);
    command.args(arguments).current_dir(&folder);
    let (code, said) = fail(command);
    assert_eq!(code, 2, "{said}");
    for words in ["error: ", "hint: ", "--model", "ltx download 2.3-distilled"] {
        assert!(said.contains(words), "{arguments:?} should say `{words}`:\n{said}");
    }
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn no_model_is_an_error_that_says_where_to_get_one() {
    refuse(&[]);
    refuse(&["--model", "toy"]);
}
