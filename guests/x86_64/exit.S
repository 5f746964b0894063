// Ends with the status that the host puts into rax.
// Options: --mode protected --reg rax=42

// The exit register takes 8, 16 or 32 bits. A process's status has room for 119 here: larger
// values end with 119, and the verdict keeps them whole.

.code32
    out EXIT, eax
    hlt                             // not reached
.code64
