// Crashes: an undefined instruction where nobody handles exceptions, a triple fault.
// Options: --mode long

// The processor looks for the handler of the invalid opcode, finds no descriptor for it (a general
// protection fault), none for that either (a double fault), and gives up: shutdown.

.code64
.Lcrash:
    lidt [rip + .Lcrash_idt]
    ud2
.Lcrash_idt:
    .word 0                         // limit: no room for a single descriptor
    .quad 0
