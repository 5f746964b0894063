// Powers the machine off through ACPI.
// Options:

.code16
    mov dx, PM1A_CONTROL
    mov ax, SLEEP_S5
    out dx, ax
    mov al, 1                       // not reached: status 1 says that ACPI did not listen
    out EXIT, al
.code64
