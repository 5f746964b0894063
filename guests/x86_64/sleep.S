// Sleeps until an interrupt comes, and none does: only a time-out ends it.
// Options: --mode long --cpus 2 --timeout 500ms

// Where there are several processors, HLT waits for the local APIC; where there is one, it is an end.

.code64
.Lsleep:
    hlt
    jmp .Lsleep
