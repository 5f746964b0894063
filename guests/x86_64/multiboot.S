// Prints what a multiboot loader tells it: name, command line, memory map, and each module.
// Options: --cmdline told

// No ELF file: the header's address fields place it. Multiboot Specification 0.6.96, 3.1 and 3.3.

.code32
.set .Lmultiboot_flags, 1 << 16 | 1 << 1 | 1 << 0   // address fields, a memory map, whole pages
.set .Lmultiboot_room,  0x1000                      // with the stack, which is no part of the file
.Lmultiboot:
    .long 0x1badb002, .Lmultiboot_flags, -(0x1badb002 + .Lmultiboot_flags)
    .long LOAD_FLAT, LOAD_FLAT, 0, LOAD_FLAT + .Lmultiboot_room
    .long LOAD_FLAT + (.Lmultiboot_start - .Lmultiboot)

.Lmultiboot_start:
    mov esp, LOAD_FLAT + .Lmultiboot_room
    cmp eax, 0x2badb002
    jne .Lmultiboot_fail
    mov ebp, ebx                    // the information
    mov esi, [ebp + 64]             // boot_loader_name
    call .Lmultiboot_text
    call .Lmultiboot_newline
    mov esi, [ebp + 16]             // cmdline
    call .Lmultiboot_text
    call .Lmultiboot_newline

    mov edi, [ebp + 48]             // mmap_addr
    mov ebx, [ebp + 44]             // mmap_length
    add ebx, edi
.Lmultiboot_entry:
    mov eax, [edi + 4]              // its address, below 4 GiB
    call .Lmultiboot_number
    mov eax, [edi + 12]             // its length
    call .Lmultiboot_number
    mov al, [edi + 20]              // its type
    add al, '0'
    call .Lmultiboot_byte
    call .Lmultiboot_newline
    add edi, [edi]
    add edi, 4
    cmp edi, ebx
    jb .Lmultiboot_entry

    mov edi, [ebp + 24]             // mods_addr
    mov ebx, [ebp + 20]             // mods_count
.Lmultiboot_module:
    dec ebx
    js .Lmultiboot_end
    mov esi, [edi + 8]              // its string
    call .Lmultiboot_text
    mov al, ':'
    call .Lmultiboot_byte
    mov esi, [edi]                  // mod_start
    test esi, 0xfff
    jnz .Lmultiboot_fail
.Lmultiboot_content:
    lodsb
    call .Lmultiboot_byte
    cmp esi, [edi + 4]              // mod_end
    jb .Lmultiboot_content
    call .Lmultiboot_newline
    add edi, 16
    jmp .Lmultiboot_module

.Lmultiboot_end:
    xor eax, eax
    out EXIT, eax
.Lmultiboot_fail:
    mov eax, 1
    out EXIT, eax

// Prints the text at esi, up to its zero byte.
.Lmultiboot_text:
    lodsb
    test al, al
    jz .Lmultiboot_return
    call .Lmultiboot_byte
    jmp .Lmultiboot_text

// Prints eax as eight hexadecimal digits and a space.
.Lmultiboot_number:
    mov edx, eax
    mov ecx, 8
.Lmultiboot_digit:
    rol edx, 4
    mov al, dl
    and al, 0xf
    add al, '0'
    cmp al, '9'
    jbe .Lmultiboot_decimal
    add al, 'a' - '9' - 1
.Lmultiboot_decimal:
    call .Lmultiboot_byte
    dec ecx
    jnz .Lmultiboot_digit
    mov al, ' '
    jmp .Lmultiboot_byte

.Lmultiboot_newline:
    mov al, '\n'
.Lmultiboot_byte:
    push edx
    mov dx, CONSOLE
    out dx, al
    pop edx
.Lmultiboot_return:
    ret
.code64
