//! A shared library that is opened when it is first needed, and the table of its functions.

/// Why a library's functions cannot be called. Says what is missing and what to do.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{library} cannot be used: {why}; install the ZFS utilities (Debian: zfsutils-linux)")]
pub struct Unavailable {
    library: &'static str,
    why: String,
}

/// An open library. It stays open where it is kept: in a static, as [`loaded!`] does.
///
/// [`loaded!`]: crate::loaded
pub struct Library {
    library: libloading::Library,
    name: &'static str,
}

impl Library {
    /// Opens the library of this file name where the dynamic linker looks for libraries.
    ///
    /// # Errors
    ///
    /// That it is not there, or cannot be loaded.
    ///
    /// # Safety
    ///
    /// The library's own initialisation, if it has any, must be sound at any time.
    pub unsafe fn open(name: &'static str) -> Result<Self, Unavailable> {
        // SAFETY: passed on to the caller.
        let opened = unsafe { libloading::Library::new(name) };
        match opened {
            Ok(library) => Ok(Self { library, name }),
            Err(error) => Err(Unavailable { library: name, why: in_words(&error) }),
        }
    }

    /// The function of this name.
    ///
    /// # Errors
    ///
    /// That the library has none.
    ///
    /// # Safety
    ///
    /// `F` must be the type of a pointer to that function, and must not be called after the
    /// library is closed.
    pub unsafe fn function<F: Copy>(&self, name: &str) -> Result<F, Unavailable> {
        // SAFETY: passed on to the caller.
        let found = unsafe { self.library.get::<F>(name) };
        match found {
            Ok(function) => Ok(*function),
            Err(error) => Err(Unavailable {
                library: self.name,
                why: format!("it has no {name}: {}", in_words(&error)),
            }),
        }
    }
}

/// What the dynamic linker says, which libloading keeps beneath its own words.
fn in_words(error: &libloading::Error) -> String {
    std::error::Error::source(error).map_or_else(|| error.to_string(), ToString::to_string)
}

/// Declares functions of a library that is loaded when the first of them is called.
///
/// `loaded! { "library.so.1"; fn name(arguments) -> result = otherwise; … }` makes each a
/// function of Rust that calls the library's, or where that is not there returns `otherwise`.
/// The private function `functions()` tells which of the two it is. All are looked up at once:
/// a library that lacks one of them counts as not there.
#[macro_export]
macro_rules! loaded {
    ($library:literal;
     $(fn $name:ident($($argument:ident: $type:ty),* $(,)?)
        $(-> $result:ty = $otherwise:expr)?;)*) => {
        /// The library and its functions. The library must be open as long as they are called.
        struct Functions {
            $($name: unsafe extern "C" fn($($type),*) $(-> $result)?,)*
            _library: $crate::Library,
        }

        /// The functions, loaded when this is first called.
        fn functions() -> Result<&'static Functions, &'static $crate::Unavailable> {
            static LOADED: std::sync::OnceLock<Result<Functions, $crate::Unavailable>> =
                std::sync::OnceLock::new();
            let load = || {
                let name: &'static str = $library;
                // SAFETY: the library is one of OpenZFS, whose libraries run nothing of
                // consequence when they are loaded; the types are those of its header; and it
                // is kept beside the pointers, in a static, which is never dropped.
                unsafe {
                    let library = $crate::Library::open(name)?;
                    Ok(Functions {
                        $($name: library.function(stringify!($name))?,)*
                        _library: library,
                    })
                }
            };
            LOADED.get_or_init(load).as_ref()
        }

        $(
            #[doc = concat!("Calls `", stringify!($name), "` of `", $library, "`.")]
            ///
            /// # Safety
            ///
            /// As the C function of this name wants it: every pointer valid for what it does.
            pub unsafe fn $name($($argument: $type),*) $(-> $result)? {
                match functions() {
                    // SAFETY: passed on to the caller.
                    Ok(functions) => unsafe { (functions.$name)($($argument),*) },
                    Err(_) => { $($otherwise)? }
                }
            }
        )*
    };
}
