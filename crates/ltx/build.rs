//! Lets this crate's tests find `libmlx` where the binding found it.

fn main() {
    let rpaths = std::env::var("DEP_MLX_RPATHS").unwrap_or_default();
    for rpath in rpaths.split(';').filter(|rpath| !rpath.is_empty()) {
        println!("cargo::rustc-link-arg=-Wl,-rpath,{rpath}");
    }
}
