//! The stub resolvers of real C libraries, asked by a small program compiled at test time.

use std::path::PathBuf;
use std::process::Command;

use super::place::Place;
use super::process::command;

/// A C library.
#[derive(Clone, Copy, Debug)]
pub enum Libc {
    Glibc,
    Musl,
}

/// The compiled program of one C library.
pub struct Stub {
    program: PathBuf,
    _place: Place,
}

/// Prints the addresses of a name, or the name of an address, or the error's text.
const SOURCE: &str = r#"
#include <arpa/inet.h>
#include <netdb.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

static int forward(const char *name) {
    struct addrinfo hints = {0}, *found, *one;
    hints.ai_family = AF_UNSPEC;
    hints.ai_socktype = SOCK_STREAM;
    int error = getaddrinfo(name, NULL, &hints, &found);
    if (error) return printf("error %s\n", gai_strerror(error)), 1;
    for (one = found; one; one = one->ai_next) {
        char text[INET6_ADDRSTRLEN];
        const void *address = one->ai_family == AF_INET
            ? (void *)&((struct sockaddr_in *)one->ai_addr)->sin_addr
            : (void *)&((struct sockaddr_in6 *)one->ai_addr)->sin6_addr;
        puts(inet_ntop(one->ai_family, address, text, sizeof text));
    }
    return 0;
}

static int reverse(const char *address) {
    struct sockaddr_in four = {.sin_family = AF_INET};
    struct sockaddr_in6 six = {.sin6_family = AF_INET6};
    char name[NI_MAXHOST];
    int is_four = inet_pton(AF_INET, address, &four.sin_addr);
    if (!is_four) inet_pton(AF_INET6, address, &six.sin6_addr);
    int error = getnameinfo(is_four ? (struct sockaddr *)&four : (struct sockaddr *)&six,
                            is_four ? sizeof four : sizeof six, name, sizeof name, NULL, 0, NI_NAMEREQD);
    if (error) return printf("error %s\n", gai_strerror(error)), 1;
    puts(name);
    return 0;
}

int main(int count, char **words) {
    if (count != 3) return 2;
    return strcmp(words[1], "reverse") ? forward(words[2]) : reverse(words[2]);
}
"#;

impl Stub {
    /// Compiles the program against `library`.
    pub fn compile(library: Libc) -> Self {
        let place = Place::new();
        let (source, program) = (place.write("stub.c", SOURCE), place.path("stub"));
        let mut compiler = match library {
            Libc::Glibc => command("gcc"),
            Libc::Musl => command("musl-gcc"),
        };
        let output = compiler.arg("-O1").arg("-o").arg(&program).arg(source).output();
        let output = output.expect("the compiler runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Self { program, _place: place }
    }

    /// The addresses of `name`, sorted; an error is one line that begins with `error`.
    pub fn addresses(&self, name: &str) -> Vec<String> {
        let mut lines = self.run("forward", name);
        lines.sort();
        lines
    }

    /// The name of `address`, or a line that begins with `error`.
    pub fn name_of(&self, address: &str) -> String {
        self.run("reverse", address).join(" ")
    }

    /// Runs it in the calling thread's namespaces.
    fn run(&self, what: &str, subject: &str) -> Vec<String> {
        let output = Command::new(&self.program).args([what, subject]).output();
        let output = output.expect("the program runs");
        String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect()
    }
}
