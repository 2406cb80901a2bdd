"""Common given names of Europe, the Americas, and parts of Asia and Africa, in Latin letters.

Written by hand for this package from general knowledge, not from a register; a rare name is not in it. Names that
are also common words, months, places or surnames are in `AMBIGUOUS`: alone they say nothing.
"""

from parlance.text.pii.context import word_set

_COMMON = """
Aaron Abbas Abdul Abdullah Abel Abigail Abraham Ada Adam Adela Adele Adelaide Adolf Adrian Adriana Agata Agatha Agnes
Agnieszka Ahmad Ahmed Aileen Aisha Akira Alan Alana Albert Alberto Aldo Alejandra Alejandro Aleksander Aleksandra
Alessandra Alessandro Alessia Alex Alexander Alexandra Alexandre Alexei Alexis Alfonso Alfred Alfredo Ali Alice Alicia
Alina Alison Allan Allison Alma Alois Alonso Alvaro Amanda Amelia Amélie Amina Amir Amit Amy Ana Anabel Anastasia
Anders Andrea Andreas Andrei Andrej Andrew Andrzej Andy Angela Angelica Angelina Angelo Angus Anil Anita Anja Anjali
Ann Anna Annabel Anne Annette Annie Anthony Antoine Antonia Antonio António Anton Anya Ariana Arianna Ariel Armando
Arnold Arthur Artur Arturo Arvid Asha Ashley Asif Astrid Audrey August Auguste Augusto Aurora Ava Axel Ayesha Barbara
Barnaby Barney Bartholomew Bartosz Basil Beata Beatrice Beatriz Belinda Ben Benedict Benedikt Benito Benjamin Benoît
Bernadette Bernard Bernardo Bernd Bernhard Bernice Bert Bertha Bertrand Beryl Bess Beth Bethany Betsy Betty Bianca
Birgit Bjarne Björn Bob Bobby Bogdan Boris Brad Bradley Brenda Brendan Brett Brian Bridget Brigitte Britta Bruce Bruno
Bryan Camila Camilla Camille Candace Carl Carla Carlo Carlos Carmen Carol Carolina Caroline Carolyn Carsten Caspar
Catalina Catarina Caterina Catherine Cathy Cecil Cecilia Cecily Cedric Celeste Celia Cesar César Chandra Charles
Charlie Charlotte Chelsea Cheryl Chiara Chloe Chris Christa Christian Christiane Christina Christine Christoph
Christophe Christopher Ciara Cindy Claire Clara Clarence Clarissa Claude Claudia Claudio Claus Clemens Clement
Clifford Clive Colette Colin Colleen Connie Connor Conrad Constance Constantin Cora Cordelia Corinne Cornelia
Cornelius Cory Cosimo Craig Cristina Cristian Curtis Cynthia Cyril Dagmar Daisy Dale Damian Damien Dan Daniel Daniela
Daniele Danielle Danny Daphne Daria Dariusz Darius Darren Dave David Davide Deborah Debbie Deepak Deirdre Delia
Demetrius Denis Denise Dennis Derek Desmond Diana Diane Dick Diego Dieter Dimitri Dina Dinah Dirk Dmitri Dmitry
Dolores Dominic Dominik Dominique Donald Donna Dora Doreen Doris Dorota Dorothea Dorothy Doug Douglas Duncan Dylan
Eamon Eddie Edgar Edith Edmond Edmund Eduard Eduardo Edward Edwin Eero Eileen Einar Eino Elaine Eleanor Elena Eleonora
Eli Elias Elijah Elin Elina Elisa Elisabeth Elise Eliza Elizabeth Ella Elle Ellen Ellie Elliot Elliott Eloise Elsa
Elsie Elvira Emanuel Emil Emile Emilia Emilie Emilio Emily Emma Emmanuel Enid Enrico Enrique Eric Erica Erich Erik
Erika Erin Ernest Ernesto Ernst Erwin Esteban Estelle Esther Ethan Ethel Eugene Eugenia Eugenio Eva Evan Eve Evelyn
Ewa Ezra Fabian Fabio Fabrizio Fanny Farid Fatima Federica Federico Felicia Felicity Felipe Felix Fergus Fernanda
Fernando Filip Filippo Fiona Fletcher Flora Frances Francesca Francesco Francis Francisca Francisco Franco François
Françoise Frank Frankie Franklin Franz Fred Freda Freddie Frederic Frederick Frederik Fredrik Freja Freya Frida
Friedrich Fritz Gabriel Gabriela Gabriele Gabriella Gabrielle Gareth Gary Gaston Gavin Gemma Geneviève Geoff Geoffrey
George Georges Georgina Gerald Geraldine Gerard Gerardo Gerhard Gertrude Gianluca Gianni Gilbert Giles Gillian Gina
Giorgio Giovanna Giovanni Giulia Giulio Giuseppe Gladys Glenda Glenn Gloria Godfrey Gonzalo Goran Gordon Graham Greg
Gregor Gregory Greta Gretchen Grzegorz Guido Guillaume Guillermo Gunnar Günter Günther Gustav Gustavo Guy Gwen
Gwendolyn Hakan Hakim Hamza Hanna Hannah Hannes Hans Harald Harold Harriet Harry Harvey Hasan Hassan Hazel Heather
Hector Hedwig Heidi Heike Heinrich Heinz Helen Helena Helene Helga Helmut Hendrik Henning Henri Henrietta Henrik Henry
Herbert Herman Hermann Hilary Hilda Hildegard Hiro Hiroshi Holger Horace Horst Howard Hubert Hugh Hugo Humphrey Ian
Ibrahim Ida Ignacio Igor Ilse Imran Ines Inés Inga Inge Ingeborg Ingrid Irena Irene Irina Iris Irma Isaac Isabel
Isabella Isabelle Isadora Isla Ismael Ivan Ivana Ivo Jack Jackie Jacob Jacqueline Jacques Jaime Jake Jakob Jakub James
Jamie Jan Jane Janet Janice Janina Janusz Jared Jarmila Jaroslav Jasmine Jason Javier Jay Jayne Jean Jeanette Jeanne
Jeannie Jeff Jeffrey Jen Jenna Jennie Jennifer Jenny Jens Jeremiah Jeremy Jerome Jerry Jesper Jess Jesse Jessica Jesús
Jill Jim Jimmy Jiří Jo Joachim Joan Joana Joanna Joanne João Joaquín Jochen Joe Joel Johan Johann Johanna Johannes
John Johnny Jon Jonas Jonathan Jorge Jörg José Josef Josefina Joseph Josephine Josh Joshua Josie Josué Juan Juana
Judith Judy Julia Julian Juliana Julie Julien Juliet Julio Julius Jürgen Justin Justyna Kai Kamil Karen Karim Karin
Karl Karla Karoline Karolina Kaspar Katarina Katarzyna Kate Katharina Katharine Katherine Kathleen Kathryn Kathy Katie
Katja Katrin Katya Kay Kazimierz Keith Kelly Ken Kenneth Kenji Kevin Khalid Kieran Kim Kirsten Kirsty Klara Klaus Knut
Konrad Konstantin Krista Kristen Kristian Kristin Kristina Kristoffer Krystyna Krzysztof Kumar Kurt Kyle Lakshmi Lara
Lars Lasse Laura Lauren Laurence Laurent Lea Leah Leandro Leif Leila Lena Leo Leon Leonard Leonardo Leonor Leroy
Leslie Leticia Lewis Liam Libby Lidia Liisa Lilian Lillian Lily Lina Linda Lindsay Lionel Lisa Liv Livia Liz Lizzie
Lola Loretta Lorenzo Loretta Lorraine Lottie Louis Louisa Louise Luc Luca Lucas Lucia Lucía Luciano Lucie Lucille
Lucinda Lucy Ludwig Luigi Luis Luís Luisa Luiz Lukas Luke Łukasz Lydia Lynn Mabel Madeleine Madeline Mads Magda
Magdalena Maggie Magnus Mahmoud Maja Małgorzata Manfred Manuel Manuela Mara Marc Marcel Marcela Marcello Marcin Marcia
Marco Marcos Marcus Marek Margaret Margarita Margarida Margit Margot Maria María Marian Mariana Marianne Marie
Mariella Marija Marilyn Marina Mario Marion Marius Marjorie Mark Markus Marlene Marta Martha Martin Martina Martine
Marvin Mary Maryam Massimo Mateo Mateusz Mathias Mathieu Mathilde Matilda Matteo Matthew Matthias Maud Maureen Maurice
Mauricio Mauro Max Maxim Maxime Maximilian Maxine Maya Megan Mehmet Mei Melanie Melinda Melissa Meredith Mia Micah
Michael Michaela Michał Michel Michele Michelle Miguel Mika Mikael Mikhail Mikko Mildred Milan Milena Millicent Millie
Milos Mimi Minna Minnie Miranda Miriam Mirjam Mitchell Mohamed Mohammad Mohammed Moira Molly Mona Monica Monika
Monique Morgan Moritz Morten Moses Muhammad Muriel Murray Mustafa Myra Myrtle Nadia Nadine Nancy Naomi Natalia Natalie
Natasha Nathan Nathaniel Neil Nell Nellie Nelson Nicholas Nick Nicola Nicolas Nicole Nicolás Nigel Niklas Nikola
Nikolai Nikolaus Nils Nina Noah Noel Nora Norbert Norma Norman Octavia Olaf Olav Ole Oleg Olga Oliver Olivia Olivier
Ollie Omar Orlando Oscar Oskar Osman Otto Owen Pablo Pamela Paola Paolo Pascal Pat Patricia Patricio Patrick Patrik
Patrycja Patsy Patty Paul Paula Pauline Paulo Pavel Paweł Pedro Peggy Penelope Penny Percival Percy Pernille Perry
Pete Peter Petr Petra Petter Phil Philip Philipp Philippa Philippe Phillip Phoebe Phyllis Pierre Pilar Piotr Polly
Poppy Prakash Priscilla Priya Rachel Rafael Rafaela Rafał Rahul Rainer Raj Rajesh Ralf Ralph Ramón Ramona Randolph
Randy Raphael Raquel Rasmus Raúl Ravi Ray Raymond Rebecca Regina Reginald Reinhard Renata Renate René Renée Rhoda
Rhonda Ricardo Riccardo Richard Rick Ricky Rita Rob Robbie Robert Roberta Roberto Robin Rodney Rodolfo Rodrigo Roger
Roland Rolf Roman Romain Ron Ronald Ronnie Rory Rosa Rosalie Rosalind Rosanna Rosario Rosemary Rosie Ross Roxanne Roy
Ruben Rubén Rudolf Rudolph Rudy Rufus Rupert Russell Ruth Ryan Sabina Sabine Sabrina Sadie Salim Sally Salma Salvador
Salvatore Sam Samantha Samir Samuel Sandra Sandro Sanjay Santosh Sara Sarah Saskia Scott Sean Sebastian Sébastien
Selina Serena Serge Sergei Sergio Shannon Sharon Shaun Sheila Shelley Shirley Shreya Sibyl Sidney Siegfried Sigrid
Silas Silke Silvia Simon Simone Siobhan Sofia Sofie Sonia Sonja Sophia Sophie Stacey Stan Stanislav Stanisław Stanley
Stefan Stefania Stefanie Stefano Stella Steffen Stephan Stephanie Stephen Steve Steven Stuart Sue Sunil Suresh Susan
Susana Susanna Susanne Susie Svein Sven Svetlana Sylvia Sylvie Tamara Tania Tanya Tatiana Ted Terence Teresa Terry
Tess Tessa Thelma Theo Theodor Theodora Theodore Theresa Thérèse Thomas Thorsten Tiffany Tilda Tim Timo Timothy Tina
Tobias Toby Todd Tom Tomás Tomasz Tommy Tony Torben Torsten Tracy Trevor Tristan Trond Trudy Ulrich Ulrike Ulrika
Umberto Uri Ursula Uta Uwe Václav Valentin Valentina Valeria Valerie Vanessa Vasily Vera Verena Verónica Veronica
Veronika Vicente Vicky Victor Viktor Viktoria Vijay Vikram Vilhelm Vincent Vincenzo Viola Violet Virginie Vittoria
Vittorio Vivian Vivien Vladimir Volker Walter Wanda Wayne Wendy Werner Wilbur Wilfred Wilhelm Willem William Willie
Winifred Winston Wojciech Wolfgang Xavier Yannick Yasmin Yoko Yolanda Yusuf Yves Yvette Yvonne Zachary Zara Zbigniew
Zdeněk Zofia Zoe Zoltán Aino Antti Heikki Jari Juha Jukka Kari Markku Matti Pekka Sami Tapio Timo Ville Åsa Åke Göran
Håkan Jörgen Kjell Lennart Ragnar Sigurd Sigurður Guðrún Jón Helgi Einar Ólafur Gunnar Ágúst István László Gábor
Ferenc Attila Katalin Zsuzsanna Ilona Erzsébet Krisztián Jana Tereza Petr Lucie Eliška Zuzana Matej Luka Nikola
Tihomir Zoran Dragan Milica Jelena Vesna Tatjana Mirko Vlado Aleš Božena Aslan Ruslan Magomed Khava Zulai Rashid
Hiroko Kenta Takashi Yuki Yumi Naoki Tomomi Akiko Keiko Ichiro Wei Xin Ming Jing Ying Aarav Aditya Arjun Kavita Meera
Neha Pooja Rakesh Ramesh Rohan Sunita Vivek Chidi Chinua Kwame Kofi Ama Ngozi Amara Folake Tunde
"""

AMBIGUOUS = word_set(
    """
Ada Adelaide Alexandria Alma Ama Angel Ann April Ariel Art Asia August Augusta Aurora Austin Basil Bill Brad Camille
Carol Charity Chase Chelsea Christian Clement Constance Daisy Dale Dallas Dawn Dean Dick Dolores Earl Eve Faith
Fletcher Flora Florence Franco Frank Franklin Geneva Georgia Gene Gloria Gordon Grace Grant Guy Harvey Hazel Heather
Herman Hope Hunter Iris Israel Ivy Jack Jan Jay Jean Jersey Jesus Jo Jordan Jordana Josh Joy June Kai Kay Kelly Ken
Kent Kim Kumar Leo Lewis Liv Logan London Lucas Madison Mara Marina Mario Mark Mason May Max Maya Mercedes Mia Milan
Ming Miles Mitchell Mona Morgan Murray Nelson Nick Noel Norman Ole Olive Orlando Oscar Paris Pat Patience Penny Percy
Perry Pearl Phoebe Poppy Pilar Raj Randy Ray Rich Rob Robin Roman Rose Rosario Ross Roy Ruby Russell Ryan Salvador
Santiago Scott Serena Shannon Sidney Sierra Sonata Stan Stella Stuart Sue Sun Susie Sydney Taylor Ted Tina Toby Tony
Trinity Troy Ty Uri Uta Valentina Vera Victor Victoria Viola Violet Virginia Wayne Wei Will Willie Winston Xin Yin Zoe
"""
)
"""Given names that are also words, places or surnames."""

GIVEN_NAMES = word_set(_COMMON) | AMBIGUOUS
